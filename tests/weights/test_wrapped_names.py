"""Prefixes that wrappers put in front of the names of tensors are removed, and reported."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from groupdetr.checkpoints.reading import open_checkpoint
from groupdetr.errors import WeightsError
from groupdetr.modeling.backbones.pretrained import read_backbone_file
from groupdetr.modeling.backbones.pretrained_layouts import RESNET
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.weights.loading import LoadReport, load_weights

from .conftest import official_state
from .test_loading import another, same


def load(path: Path, state: dict[str, Tensor], **others: object) -> tuple[LoadReport, nn.Module]:
    torch.save({"state_dict": state, **others}, path)
    loaded = another()
    return load_weights(loaded, path, file_groups=3), loaded


@pytest.mark.parametrize(
    ("prefix", "names"),
    [
        *(("module.", "ours"), ("module._orig_mod.", "ours"), ("detector.", "ours")),
        *(("model.", "official"), ("_orig_mod.", "official")),
        ("net.model.module.", "official"),
    ],
)
def test_a_prefix_of_all_names_is_removed(
    prefix: str, names: str, model: DetectionTransformer, tmp_path: Path
) -> None:
    state = dict(model.state_dict()) if names == "ours" else official_state(model)
    wrapped = {f"{prefix}{name}": value for name, value in state.items()}
    report, loaded = load(tmp_path / "x.pth", wrapped)
    assert same(loaded, model)
    assert any("removed" in line and "from the names of tensors" in line for line in report.lines)


def test_wrappers_inside_of_names_are_removed(model: DetectionTransformer, tmp_path: Path) -> None:
    """torch.compile and FSDP also wrap single modules."""
    state = {}
    for name, value in model.state_dict().items():
        part, _, rest = name.partition(".")
        state[f"{part}._orig_mod._fsdp_wrapped_module.{rest}"] = value
    _, loaded = load(tmp_path / "x.pth", state)
    assert same(loaded, model)


def test_what_is_beside_the_model_in_a_lightning_file_is_left_out_and_named(
    model: DetectionTransformer, tmp_path: Path
) -> None:
    state = {f"model.{name}": value for name, value in official_state(model).items()}
    state["criterion.empty_weight"] = torch.ones(6)
    report, loaded = load(tmp_path / "x.ckpt", state)
    assert same(loaded, model)
    assert "left out the tensors without it: criterion.empty_weight" in report.lines


def test_of_a_model_and_its_average_the_model_is_loaded(
    model: DetectionTransformer, tmp_path: Path
) -> None:
    state = {}
    for name, value in official_state(model).items():
        state[f"ema_model.{name}"] = value + 1
        state[f"model.{name}"] = value
    report, loaded = load(tmp_path / "x.ckpt", state)
    assert same(loaded, model)
    assert any("left out" in line and "ema_model." in line for line in report.lines)


def test_the_average_of_torch_is_loaded(model: DetectionTransformer, tmp_path: Path) -> None:
    """It has a counter beside the tensors, whose names begin with ``module.``"""
    torch.save({"ema": AveragedModel(model).state_dict()}, tmp_path / "x.pth")
    loaded = another()
    load_weights(loaded, tmp_path / "x.pth")
    assert same(loaded, model)


def test_names_that_would_become_one_are_not_merged(
    model: DetectionTransformer, tmp_path: Path
) -> None:
    state = dict(model.state_dict())
    state["decoder._orig_mod.norm.bias"] = state["decoder.norm.bias"] + 1
    with pytest.raises(WeightsError, match=r"the model has no decoder\._orig_mod\.norm\.bias"):
        load(tmp_path / "x.pth", state)


def test_a_wrapped_backbone_is_read(tmp_path: Path) -> None:
    state = {"bn1.weight": torch.ones(4), "layer4.0.downsample.0.weight": torch.ones(2)}
    torch.save({f"module.{name}": value for name, value in state.items()}, tmp_path / "x.pth")
    assert read_backbone_file(str(tmp_path / "x.pth"), (RESNET,)).state.keys() == state.keys()


def test_a_checkpoint_without_a_wrapper_has_no_note(official_file: Path) -> None:
    assert open_checkpoint(official_file).notes == ()
    assert len(load_weights(another(), official_file).lines) == 1
