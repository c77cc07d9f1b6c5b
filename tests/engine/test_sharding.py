"""FSDP: parameters that are divided over processes are trained as whole ones are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed

from groupdetr.cli.main import main
from groupdetr.data.synthetic import SyntheticConfig, write
from groupdetr.detectors.recipe import Recipe
from groupdetr.engine.sharded_tensors import is_sharded
from groupdetr.engine.sharding import create_mesh, find_blocks, shard
from groupdetr.modeling.group_chunks import with_loss
from groupdetr.registry import experiment
from tests.claims.detectors import (
    FAST,
    build,
    compute_gradients,
    detector_input,
    random_images,
)
from tests.runs import (
    evaluations,
    grad_norms_by_step,
    load_checkpoint,
    losses_by_step,
    torchrun,
    train_arguments,
)

PROGRAM = Path(__file__).with_name("sharded_training.py")
SHORT = {
    "groups": 3,
    "steps": 5,
    "batch": 4,
    "imgsz": 48,
    "eval_every": 1.0,
    "lr": 1e-3,
    "backbone_lr": 1e-3,
    "warmup": 0,
    "workers": 0,
    "threads": 1,
    "device": "cpu",
}
CONDITIONAL = {"model": "conditional-detr-tiny", "ema": 0.9}
VIT = {"model": "dino-vit-tiny", "queries": 20, "layer_decay": 0.8, "steps": 3}
IN_PARTS = {"accumulate": 2, "group_chunk": 2, "recompute": True, "freeze": ["encoder"], "ema": 0.9}


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of which one of two processes has one validation image and one batch more."""
    folder = tmp_path_factory.mktemp("uneven")
    config = SyntheticConfig(image_size=48, num_classes=3, max_objects=3)
    write(config, folder, {"train": 12, "val": 5})
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        pytest.param(CONDITIONAL, 1e-5, id="conditional"),
        pytest.param({**VIT, **IN_PARTS}, 1e-5, id="vit in parts"),
        # Gradients differ in their last bits, and the rounding of bf16 makes more of it.
        pytest.param({**VIT, "precision": "bf16"}, 2e-2, id="vit in bf16"),
    ],
)
def test_two_processes_with_fsdp_take_the_steps_of_those_without_and_resume_each_other(
    options: dict[str, Any],
    tolerance: float,
    uneven: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [str(uneven), str(tmp_path), json.dumps({**SHORT, **options})]
    process = torchrun(2, arguments, program=[str(PROGRAM)])
    assert process.returncode == 0, process.stderr
    plain = tmp_path / "ddp"
    expected = load_checkpoint(plain)
    for name in ("fsdp", "ddp-fsdp", "fsdp-ddp"):
        run = tmp_path / name
        assert grad_norms_by_step(run) == pytest.approx(grad_norms_by_step(plain), rel=tolerance)
        for step, losses in losses_by_step(plain).items():
            assert sum(losses_by_step(run)[step].values()) == pytest.approx(
                sum(losses.values()), rel=tolerance
            )
        checkpoint = load_checkpoint(run)
        assert checkpoint["optimizer_parameters"] == expected["optimizer_parameters"]
        assert checkpoint["progress"]["step"] == expected["progress"]["step"] > 2
        if options.get("precision") == "bf16":
            continue  # AdamW takes steps of full length along gradients that are near zero.
        for part in ("model", "ema"):
            assert_close(weights(checkpoint, part), weights(expected, part), tolerance)
        moments, expected_moments = (x["optimizer"]["state"] for x in (checkpoint, expected))
        assert_close(flat(moments), flat(expected_moments), tolerance)
    sizes = [run.joinpath("weights/last.pt").stat().st_size for run in (plain, tmp_path / "fsdp")]
    assert sizes[0] == pytest.approx(sizes[1], rel=1e-2)
    # The weights of FSDP have the same score in one process.
    arguments = ["val", str(tmp_path / "fsdp"), "--device", "cpu", "--workers", "0", "--json"]
    assert main([*arguments, "--precision", options.get("precision", "fp32")]) == 0
    best = max(record["AP"] for record in evaluations(tmp_path / "fsdp"))
    assert json.loads(capsys.readouterr().out)["AP"] == pytest.approx(best, rel=1e-3)


def assert_close(ours: dict[Any, Tensor], theirs: dict[Any, Tensor], tolerance: float) -> None:
    """Assert that all tensors are close, compared with the largest value of each."""
    assert ours.keys() == theirs.keys()
    for name, x in theirs.items():
        largest = float(x.float().abs().max()) if x.numel() else 0.0
        torch.testing.assert_close(
            ours[name], x, rtol=tolerance, atol=tolerance * max(1e-2, largest), msg=str(name)
        )


def weights(checkpoint: dict[str, Any], part: str) -> dict[str, Tensor]:
    """Return the weights of a checkpoint without the biases of keys.

    The softmax of an attention does not depend on them. So their gradient is nothing but rounding,
    and AdamW takes steps of full length along it.
    """
    state = checkpoint[part] or {}
    return {name: x for name, x in state.items() if not name.endswith("key_proj.bias")}


def flat(states: dict[int, dict[str, Tensor]]) -> dict[Any, Tensor]:
    return {(i, name): x for i, state in states.items() for name, x in state.items()}


# in one process: a group of processes with one member, in which FSDP does all that it does in more


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    store = f"file://{tmp_path / 'store'}"
    distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


QUICK = ("conditional-detr", "dino")  # the other detectors run with the slow tests
CASES = [
    pytest.param(
        recipe, chunk, id=f"{name}, {chunk}", marks=() if name in QUICK else pytest.mark.slow
    )
    for name, recipe in FAST.items()
    for chunk in (None, 2)
]


@pytest.mark.parametrize(("recipe", "chunk"), CASES)
def test_gradients_are_those_of_whole_parameters_also_if_layers_are_recomputed(
    recipe: Recipe, chunk: int | None, one_process: None
) -> None:
    model = build(replace(recipe, recompute=True)).train()
    whole = deepcopy(model)
    network = with_loss(model, recipe.criterion(), chunk)
    shard(network, create_mesh(torch.device("cpu"), 1))
    assert is_sharded(model)
    plain = with_loss(whole, recipe.criterion(), chunk)
    images = detector_input(recipe, random_images((2, 3), (3, 1)))
    for step, counts in enumerate([(4, 2), (0, 0), (1, 5)]):
        compute_gradients((network, plain), recipe, images, counts, seed=step)
        for (name, ours), theirs in zip(model.named_parameters(), whole.parameters(), strict=True):
            if theirs.grad is None:
                assert ours.grad is None, name
            else:
                assert ours.grad is not None, name
                gradient = ours.grad.full_tensor()  # type: ignore[attr-defined]
                # Convolutions sum in another order, because their weights are contiguous.
                assert_close({name: gradient}, {name: theirs.grad}, 1e-5)


def test_the_units_are_the_blocks_of_the_backbone_and_the_layers_of_the_encoder() -> None:
    model = experiment("dino-vit-tiny").recipe.build()
    layers = model.encoder.layers
    assert find_blocks(model) == [*model.backbone.network.vit.blocks, *layers]
    # A parameter of a block that something else uses, too
    model.decoder.shared = layers[0].norm1
    assert find_blocks(model) == [*model.backbone.network.vit.blocks, *layers[1:]]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--groups-per-step", "1"), "--groups-per-step None"),
        (("--groups-schedule", "2:0.5,1:1"), "--groups-schedule None"),
        (("--compile",), "leave out --compile"),
        (("--batch", "auto"), "--group-chunk 1"),
        (("--groups", "auto"), "--group-chunk 1"),
        ((), "torchrun --nproc-per-node"),
    ],
)
def test_what_does_not_work_with_fsdp_is_refused_with_a_remedy(
    options: tuple[str, ...],
    named: str,
    uneven: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(train_arguments(uneven, tmp_path / "run", *options, "--fsdp")) == 2
    message = capsys.readouterr().err
    assert "--fsdp" in message
    assert named in message
    assert options[:1] == () or options[0] in message
    assert not (tmp_path / "run").exists()
