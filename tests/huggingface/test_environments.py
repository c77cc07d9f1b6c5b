"""Detectors with groups under gradient checkpointing, autocast, DDP, torch.compile and peft."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import groupdetr.huggingface as ghf
from tests.huggingface.detectors import DETECTORS, batch

# One family with tables of queries and one with heads for proposals
BOTH_KINDS = pytest.mark.parametrize("name", ["Conditional DETR", "RT-DETRv2"])


def detector(name: str) -> Any:
    """A detector with three groups, without noise in its denoising queries."""
    torch.manual_seed(0)
    model = DETECTORS[name]()
    if hasattr(model.config, "box_noise_scale"):
        model.config.label_noise_ratio = model.config.box_noise_scale = 0.0
    return ghf.with_groups(model, 3).train()


def gradients(model: Any, inputs: dict[str, Any]) -> dict[str, Tensor]:
    model.zero_grad()
    model(**inputs).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_gradient_checkpointing_changes_no_gradient() -> None:
    model = detector("Conditional DETR")
    inputs = batch(model)
    expected = gradients(model, inputs)
    model.gradient_checkpointing_enable()
    assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    recomputed = gradients(model, inputs)
    assert recomputed.keys() == expected.keys()
    for name, gradient in recomputed.items():
        assert_close(gradient, expected[name], msg=name)


@BOTH_KINDS
def test_bfloat16_autocast_trains_all_groups(name: str) -> None:
    """Every parameter gets a finite gradient, those of the new groups included."""
    model = detector(name)
    inputs = batch(model)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**inputs).loss
    loss.backward()
    new = [p for parameter, p in model.named_parameters() if "other_groups" in parameter]
    assert new
    assert all(p.grad is not None and p.grad.isfinite().all() for p in new)
    assert any(p.grad.abs().sum() > 0 for p in new)


def test_a_copy_has_groups_of_its_own() -> None:
    """The hooks of a copy follow its own mode, so an average of weights can be evaluated."""
    model = detector("RT-DETRv2")
    average = copy.deepcopy(model).eval()
    inputs = {"pixel_values": batch(model)["pixel_values"]}
    assert average(**inputs).logits.shape[1] * 3 == model(**inputs).logits.shape[1]
    ghf.without_groups(average)
    assert ghf.num_groups(average) == 1
    assert ghf.num_groups(model) == 3


def _train_on_rank(rank: int, folder: str) -> None:
    """One of two processes: two steps on an image of its own. Writes the gradients of the first."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    gradients_of_detectors = {}
    for name in ("Conditional DETR", "RT-DETRv2"):
        model = _ddp_detector(name)
        inputs = _image(model, rank)
        parallel = torch.nn.parallel.DistributedDataParallel(model)
        gradients_of_detectors[name] = _gradients_in_parallel(parallel, inputs)
        # A second step fails if a parameter had no gradient in the first one.
        parallel(**inputs).loss.backward()
    if rank == 0:
        torch.save(gradients_of_detectors, f"{folder}/gradients.pt")
    torch.distributed.destroy_process_group()


def _gradients_in_parallel(parallel: Any, inputs: dict[str, Any]) -> dict[str, Tensor]:
    parallel.zero_grad()
    parallel(**inputs).loss.backward()
    named = parallel.module.named_parameters()
    return {name: p.grad.clone() for name, p in named if p.grad is not None}


def _ddp_detector(name: str) -> Any:
    model = detector(name)
    # The statistics of a batch norm are those of a process.
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    return model


def _image(model: Any, rank: int) -> dict[str, Any]:
    torch.manual_seed(rank)
    return batch(model, num_objects=(2,))


@pytest.mark.slow
def test_two_processes_have_the_mean_of_their_gradients(tmp_path: Path) -> None:
    """DistributedDataParallel knows the parameters of all groups, and each is used."""
    torch.multiprocessing.spawn(_train_on_rank, (str(tmp_path),), nprocs=2)
    found = torch.load(tmp_path / "gradients.pt")
    for name, gradients_in_parallel in found.items():
        model = _ddp_detector(name)
        first, second = (gradients(model, _image(model, rank)) for rank in (0, 1))
        largest = max(float(gradient.abs().max()) for gradient in first.values())
        for parameter, gradient in gradients_in_parallel.items():
            mean = (first[parameter] + second[parameter]) / 2
            assert_close(gradient, mean, rtol=1e-3, atol=1e-5 * largest, msg=parameter)


@pytest.mark.slow
@BOTH_KINDS
def test_a_compiled_detector_has_the_same_loss_and_gradients(name: str) -> None:
    """The backend "eager" traces the model as all backends do, but needs no compiler."""
    model = detector(name)
    inputs = batch(model)
    expected = gradients(model, inputs)
    compiled = torch.compile(model, backend="eager")
    model.zero_grad()
    compiled(**inputs).loss.backward()
    for parameter, p in model.named_parameters():
        if p.grad is not None:
            assert_close(p.grad, expected[parameter], msg=parameter)


def test_adapters_of_peft_on_the_encoder_are_trained_with_groups() -> None:
    """peft freezes the queries of the detector, so those of its new groups are frozen, too."""
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(
        DETECTORS["Conditional DETR"](),
        peft.LoraConfig(r=2, target_modules=r".*model\.encoder\.layers\.\d+\.self_attn\.q_proj"),
    )
    model = ghf.with_groups(adapted, 3).train()
    assert ghf.num_groups(model) == 3
    inputs = batch(adapted)
    output = model(**inputs)
    output.loss.backward()
    trained = [name for name, p in model.named_parameters() if p.grad is not None]
    assert output.logits.shape[1] == 15
    assert trained
    assert all("lora" in name for name in trained)
    ghf.without_groups(model)
    assert not any("other_groups" in name for name, _ in model.named_parameters())
