"""Predictions and losses equal those of PaddleDetection's Group DINO, for every group.

The weights and the image follow from their names (`by_rule`). PaddleDetection's code computed the
expected values on a CPU, in float32.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from torch import Tensor

from groupdetr import Detector
from groupdetr.checkpoints.checkpoint import Checkpoint
from groupdetr.checkpoints.layout import unchanged
from groupdetr.modeling.backbones.vit import ViTSizes, vit_huge
from groupdetr.structures.images import Images
from groupdetr.structures.outputs import Outputs
from groupdetr.structures.targets import Target
from groupdetr.weights.paddledetection_dino import PADDLEDETECTION_DINO
from tests.parity.by_rule import golden_image, golden_state, read_golden
from tests.weights.paddle import write_pdparams

TOLERANCE = 1e-4
R50 = read_golden("group_dino_r50.json")
VIT = read_golden("group_dino_vit.json")


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    """The detector of the published file, which is converted into the cache."""
    folder = tmp_path_factory.mktemp("golden")
    file = write_pdparams(folder / "group_dino_r50_4scale_1x_coco.pdparams", golden_state(R50))
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(folder / "assets"))
        return Detector(file, "cpu")


@pytest.fixture(scope="module")
def outputs(detector: Detector) -> Outputs:
    model = detector.model
    model.queries.inference_group = None
    with torch.no_grad():
        outputs = model(Images.from_list([torch.from_numpy(golden_image(R50))]))
    model.queries.inference_group = 0
    return outputs


def test_the_file_says_which_detector_it_is(detector: Detector) -> None:
    recipe = detector.recipe
    assert (recipe.preset, recipe.num_groups, recipe.num_queries) == ("group-dino-r50", 3, 50)
    assert detector.categories[0] == (1, "person")
    assert detector.categories[-1] == (90, "toothbrush")
    assert len(detector.categories) == 80


@pytest.mark.parametrize("group", range(3))
def test_predictions_of_every_group_are_theirs(group: int, outputs: Outputs) -> None:
    expected = R50["groups"][group]
    first, last = outputs.layers[0], outputs.layers[-1]
    proposals = outputs.queries.proposals
    rows, classes = R50["rows"], R50["classes"]
    logits = last.logits[0, group]
    assert_close(last.boxes[0, group, rows], expected["boxes"])
    assert_close(logits[rows][:, classes], expected["logits"])
    assert_close(first.boxes[0, group, rows], expected["first_layer_boxes"])
    assert_close(proposals.boxes[0, group, rows], expected["proposals"]["boxes"])
    proposal_logits = proposals.logits[0, group, rows][:, classes]
    assert_close(proposal_logits, expected["proposals"]["logits"])
    assert logits.double().sum().item() == pytest.approx(expected["sum_of_logits"], rel=1e-6)


def test_the_losses_of_all_groups_are_theirs(detector: Detector, outputs: Outputs) -> None:
    """The mean of the groups, without denoising, whose noise is random."""
    training = R50["training"]
    target = Target(torch.tensor(training["labels"]), torch.tensor(training["boxes"]))
    losses = detector.recipe.criterion()(outputs, [target])
    for term, expected in training["last_layer"].items():
        assert losses[f"layer5/{term}"].item() == pytest.approx(expected, rel=TOLERANCE)
    for term, expected in training["proposals_and_other_layers"].items():
        others = [f"{name}/{term}" for name in ("proposals", *(f"layer{i}" for i in range(5)))]
        total = sum(losses[name].item() for name in others)
        assert total == pytest.approx(expected, rel=TOLERANCE)


@pytest.fixture(scope="module")
def maps() -> list[Tensor]:
    """The maps of a small ViT and its pyramid, with the windows of ViT-Huge."""
    sizes = ViTSizes(width=64, depth=4, num_heads=4, window=14, global_blocks=(1, 3), channels=64)
    backbone = vit_huge(pretrained=False, recompute=False, sizes=sizes).eval()
    arrays = golden_state(VIT)
    theirs = {name: torch.from_numpy(array) for name, array in arrays.items()}
    # A part of a detector lacks what `complete` changes.
    layout = replace(PADDLEDETECTION_DINO, complete=unchanged)
    ours = layout.convert(Checkpoint(theirs, {}, "golden")).state
    backbone.load_state_dict({name.removeprefix("backbone."): ours[name] for name in ours})
    with torch.no_grad():
        pixels = torch.from_numpy(golden_image(VIT))
        return backbone(pixels.unsqueeze(0))


@pytest.mark.parametrize("level", range(4))
def test_maps_of_the_vit_are_theirs(level: int, maps: list[Tensor]) -> None:
    expected, found = VIT["maps"][level], maps[level]
    assert list(found.shape) == expected["shape"]
    assert_close(found[0, :4, 1, 2], expected["[0,:4,1,2]"])
    assert_close(found[0, :4, -1, -1], expected["[0,:4,-1,-1]"])
    assert found.mean().item() == pytest.approx(expected["mean"], abs=TOLERANCE)
    assert found.std(correction=0).item() == pytest.approx(expected["std"], abs=TOLERANCE)


def assert_close(values: Tensor, expected: list[Any]) -> None:
    torch.testing.assert_close(values, torch.tensor(expected), rtol=0, atol=TOLERANCE)
