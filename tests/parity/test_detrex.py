"""Outputs equal those of detrex's DINO, from one checkpoint file of theirs.

Runs if the environment variable GROUPDETR_DETREX_REPO names a checkout of
github.com/IDEA-Research/detrex. To print the differences: ``pytest -m slow -s tests/parity``.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from groupdetr.checkpoints.native import read
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.registry import recipe_from_dict
from groupdetr.structures.images import Images
from groupdetr.weights.importing import import_weights
from groupdetr.weights.loading import load_weights

from . import detrex
from .official import roughen
from .test_official_code import TOLERANCE, max_difference, random_image

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
    """A model that is built and filled from an imported file."""
    folder = tmp_path_factory.mktemp("detrex")
    torch.save({"model": theirs.state_dict(), "iteration": 89999}, folder / "model_final.pth")
    import_weights(
        folder / "model_final.pth",
        folder / "ours.safetensors",
        num_queries=detrex.QUERIES,
        file_groups=1,
    )
    model = recipe_from_dict(read(folder / "ours.safetensors")[1]["recipe"]).build()
    assert len(load_weights(model, folder / "ours.safetensors").lines) == 1
    return model.eval()


@pytest.fixture(scope="module")
def images() -> Images:
    torch.manual_seed(1)
    return Images.from_list([random_image(96, 128), random_image(128, 80), random_image(64, 64)])


def test_all_tensors_of_their_checkpoint_are_used(
    theirs: nn.Module, ours: DetectionTransformer
) -> None:
    assert len(theirs.state_dict()) == 634
    their_sizes = {id(p): p.numel() for p in theirs.parameters()}
    our_size = sum(p.numel() for p in ours.parameters())
    last_label_row = 256  # which their table does not have
    assert our_size == sum(their_sizes.values()) + last_label_row


def test_outputs_are_theirs(theirs: nn.Module, ours: DetectionTransformer, images: Images) -> None:
    with torch.no_grad():
        our_outputs, their_outputs = ours(images), detrex.predict(theirs, images)
    our_layers = [*our_outputs.layers, our_outputs.queries.proposals]
    their_layers = [*their_outputs["aux_outputs"], their_outputs, their_outputs["enc_outputs"]]
    predicted, expected = {}, {}
    for i, layer in enumerate(our_layers):
        predicted[f"logits{i}"] = layer.logits[:, 0]
        predicted[f"boxes{i}"] = layer.boxes[:, 0]
    for i, layer in enumerate(their_layers):
        expected[f"logits{i}"] = layer["pred_logits"]
        expected[f"boxes{i}"] = layer["pred_boxes"]
    # Queries must differ, or equal outputs would prove little.
    assert their_outputs["pred_logits"].std(1).mean() > 0.02
    assert max_difference("detrex", predicted, expected) < TOLERANCE
