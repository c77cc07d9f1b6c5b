"""Outputs equal those of detrex's DINO, from one checkpoint file of theirs.

Runs where the environment variable GROUPDETR_DETREX_REPO names a checkout of github.com/IDEA-Research/detrex.
Figures: ``pytest -m slow -s tests/parity``.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from groupdetr.checkpoints.native import read
from groupdetr.experiments import recipe_from
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.structures.images import Images
from groupdetr.weights.importing import import_weights
from groupdetr.weights.loading import load_weights

from . import detrex
from .official import roughen
from .test_official_code import TOLERANCE, differences, scene

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    path = detrex.repository()
    if path is None:
        pytest.skip(f"{detrex.VARIABLE} names no checkout")
    torch.manual_seed(0)
    model = detrex.build(path)
    roughen(model)
    return model


@pytest.fixture(scope="module")
def ours(theirs: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> DetectionTransformer:
    """By way of an imported file, which knows all that it takes."""
    folder = tmp_path_factory.mktemp("detrex")
    torch.save({"model": theirs.state_dict(), "iteration": 89999}, folder / "model_final.pth")
    import_weights(
        folder / "model_final.pth",
        folder / "ours.safetensors",
        num_queries=detrex.QUERIES,
        file_groups=1,
    )
    model = recipe_from(read(folder / "ours.safetensors")[1]["recipe"]).build()
    assert len(load_weights(model, folder / "ours.safetensors").lines) == 1
    return model.eval()


@pytest.fixture(scope="module")
def images() -> Images:
    torch.manual_seed(1)
    return Images.from_list([scene(96, 128), scene(128, 80), scene(64, 64)])


def test_all_tensors_of_their_checkpoint_are_used(
    theirs: nn.Module, ours: DetectionTransformer
) -> None:
    assert len(theirs.state_dict()) == 634
    parameters = {id(p): p.numel() for p in theirs.parameters()}
    assert (
        sum(p.numel() for p in ours.parameters()) == sum(parameters.values()) + 256
    )  # the last row of labels


def test_outputs_are_theirs(theirs: nn.Module, ours: DetectionTransformer, images: Images) -> None:
    with torch.no_grad():
        found, said = ours(images), detrex.said(theirs, images)
    proposed = found.queries.proposals
    told = {f"logits{i}": x.logits[:, 0] for i, x in enumerate([*found.layers, proposed])}
    told |= {f"boxes{i}": x.boxes[:, 0] for i, x in enumerate([*found.layers, proposed])}
    layers = [*said["aux_outputs"], said, said["enc_outputs"]]
    meant = {f"logits{i}": x["pred_logits"] for i, x in enumerate(layers)}
    meant |= {f"boxes{i}": x["pred_boxes"] for i, x in enumerate(layers)}
    assert said["pred_logits"].std(1).mean() > 0.02  # queries differ, or this would show little
    assert differences("detrex", told, meant) < TOLERANCE
