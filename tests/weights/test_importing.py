"""Imports of Conditional DETR's checkpoints to files of this library."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from groupdetr.checkpoints.native import read, save
from groupdetr.detectors.conditional_detr import ConditionalDETR
from groupdetr.detectors.tiny import TinyConditionalDETR
from groupdetr.errors import UsageError, WeightsError
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.registry import experiment, recipe_from_dict, recipe_to_dict
from groupdetr.structures.images import Images
from groupdetr.weights.file_fit import build_for_file
from groupdetr.weights.importing import import_weights
from groupdetr.weights.loading import load_weights

from .conftest import SMALL, official_args, official_state

TINY = "conditional-detr-tiny"


def test_an_import_is_a_complete_file(
    model: DetectionTransformer, official_file: Path, tmp_path: Path
) -> None:
    report = import_weights(official_file, tmp_path / "out.safetensors", TINY)
    metadata = read(tmp_path / "out.safetensors")[1]
    again = recipe_from_dict(metadata["recipe"]).build()
    load_weights(again, tmp_path / "out.safetensors")
    images = Images.from_list([torch.randn(3, 64, 48)])
    assert torch.equal(again.eval()(images).final.boxes, model.eval()(images).final.boxes)
    assert asdict(again.recipe) == asdict(model.recipe) | {"preset": TINY, "dropout": 0.1}
    assert metadata["categories"] == [[row, f"class {row}"] for row in range(5)]
    assert metadata["imgsz"] == experiment(TINY).settings.imgsz
    assert report.lines[-2] == "the names of its 5 classes are not known: class 0, class 1, ..."
    assert report.lines[-1] == f"{tmp_path / 'out.safetensors'}: {TINY}, 3 x 4 queries, 5 classes"


@pytest.mark.parametrize(
    ("num_groups", "rows", "answering"), [(1, [2], 0), (2, [2, 1], 0), (3, [0, 1, 2], 2)]
)
def test_the_group_that_answers_is_never_left_out(
    num_groups: int, rows: list[int], answering: int, model: DetectionTransformer, tmp_path: Path
) -> None:
    """`groupdetr groups --best` writes such a file, with the score threshold of the group."""
    recipe = recipe_to_dict(replace(SMALL, preset=TINY, inference_group=2))
    save(model, tmp_path / "best.safetensors", {"recipe": recipe, "score_threshold": 0.3})
    report = import_weights(
        tmp_path / "best.safetensors", tmp_path / "out.safetensors", num_groups=num_groups
    )
    state, metadata = read(tmp_path / "out.safetensors")
    assert torch.equal(state["queries.embedding"], model.queries.embedding[rows])
    assert metadata["recipe"]["inference_group"] == answering
    assert metadata["score_threshold"] == 0.3
    assert ("group 2 answers in the file" in "".join(report.lines)) is (num_groups < 3)


@pytest.mark.parametrize("group", ["x", 7])
def test_a_group_that_answers_and_does_not_exist_changes_nothing(
    group: object, model: DetectionTransformer, tmp_path: Path
) -> None:
    recipe = recipe_to_dict(replace(SMALL, preset=TINY)) | {"inference_group": group}
    save(model, tmp_path / "odd.safetensors", {"recipe": recipe})
    one = replace(SMALL, num_groups=1).build()
    load_weights(one, tmp_path / "odd.safetensors")
    assert torch.equal(one.queries.embedding, model.queries.embedding[:1])


def test_fewer_queries_are_the_first_ones_of_every_group(
    model: DetectionTransformer, tmp_path: Path
) -> None:
    """Without metadata, a file has groups of as many queries as the preset, not as the model."""
    num_queries = experiment(TINY).recipe.num_queries
    large = replace(SMALL, num_groups=2, num_queries=num_queries).build()
    torch.save(official_state(large), tmp_path / "bare.pth")
    out = tmp_path / "out.safetensors"
    report = import_weights(tmp_path / "bare.pth", out, TINY, num_queries=num_queries // 2)
    assert any(f"read as 2 groups of {num_queries}" in line for line in report.lines)
    assert torch.equal(
        read(out)[0]["queries.embedding"], large.queries.embedding[:, : num_queries // 2]
    )


def test_an_import_of_a_file_of_ours_keeps_its_metadata(
    official_file: Path, tmp_path: Path
) -> None:
    import_weights(official_file, tmp_path / "one.safetensors", TINY)
    import_weights(tmp_path / "one.safetensors", tmp_path / "two.safetensors", num_queries=2)
    one, two = read(tmp_path / "one.safetensors")[1], read(tmp_path / "two.safetensors")[1]
    assert two == one | {"recipe": one["recipe"] | {"num_queries": 2}}


@pytest.mark.parametrize(
    ("dilation", "preset"), [(False, "conditional-detr-r50"), (True, "conditional-detr-r50-dc5")]
)
def test_the_training_arguments_distinguish_r50_and_dc5(
    dilation: bool, preset: str, tmp_path: Path
) -> None:
    recipe = ConditionalDETR(
        num_queries=3,
        channels=16,
        num_heads=2,
        dim_feedforward=16,
        encoder_layers=1,
        decoder_layers=2,
    )
    model = recipe.build()
    content = {"model": official_state(model), "args": official_args(model, dilation=dilation)}
    torch.save(content, tmp_path / "checkpoint.pth")
    import_weights(tmp_path / "checkpoint.pth", tmp_path / "out.safetensors")
    metadata = read(tmp_path / "out.safetensors")[1]
    assert metadata["recipe"]["preset"] == preset
    assert recipe_from_dict(metadata["recipe"]).dilated is dilation  # type: ignore[attr-defined]
    assert metadata["categories"][18] == [18, "dog"]


def test_without_training_arguments_the_preset_must_be_named(
    model: DetectionTransformer, tmp_path: Path
) -> None:
    torch.save({"model": official_state(model), "args": Namespace()}, tmp_path / "bare.pth")
    with pytest.raises(
        WeightsError, match="does not say if it is conditional-detr-r50 or conditional-detr-r50-dc5"
    ):
        import_weights(tmp_path / "bare.pth", tmp_path / "out.safetensors")
    with pytest.raises(UsageError, match="no model 'conditional-detr-r5'"):
        import_weights(tmp_path / "bare.pth", tmp_path / "out.safetensors", "conditional-detr-r5")


def test_a_file_cannot_ask_for_more_layers_than_it_has_tensors(
    model: DetectionTransformer, tmp_path: Path
) -> None:
    """Layers take time to build before it is known that their weights are missing."""
    file = tmp_path / "x.safetensors"
    recipe = TinyConditionalDETR(**{**asdict(model.recipe), "decoder_layers": 1000})
    save(model, file, {})
    with pytest.raises(WeightsError, match=r"decoder_layers is 1000, not at most the \d+ tensors"):
        build_for_file(recipe, file)
