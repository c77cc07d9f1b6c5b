"""RF-DETR-Seg equals the published code: predictions transformers, training losses rfdetr 1.11.2.

The weights and the image follow from their names (`by_rule`). The two packages computed the
expected values on a CPU, in float32, with all 13 groups in training.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.registry import create_model
from groupdetr.structures.images import Images
from groupdetr.structures.masks import MaskFeatures
from groupdetr.structures.predictions import Predictions
from groupdetr.structures.targets import Target
from groupdetr.weights.loading import load_weights
from tests.claims.detectors import ellipse_masks
from tests.parity.by_rule import golden_image, golden_state, normal_numbers, read_golden

GOLDEN = read_golden("rf_detr_seg_nano.json")
SIDE = GOLDEN["image"]["width"]
# Our losses -> those of rfdetr
LOSSES = {
    "iou_aware_bce": "loss_ce",
    "l1": "loss_bbox",
    "giou": "loss_giou",
    "mask": "loss_mask_ce",
    "dice": "loss_mask_dice",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DetectionTransformer:
    file = tmp_path_factory.mktemp("golden") / "rf-detr-seg-nano.pth"
    state = {name: torch.from_numpy(array) for name, array in golden_state(GOLDEN).items()}
    torch.save({"model": state, "args": {}}, file)
    model = create_model("rf-detr-seg-nano")
    load_weights(model, file)
    return model


@pytest.fixture(scope="module")
def images() -> Images:
    return Images.from_list([torch.from_numpy(golden_image(GOLDEN))])


@pytest.fixture(scope="module")
def final(model: DetectionTransformer, images: Images) -> Predictions:
    with torch.no_grad():
        return model.eval()(images).final[0:1]


def difference(ours: Tensor, theirs: list) -> float:
    return (ours - torch.tensor(theirs)).abs().max().item()


def test_boxes_and_logits_are_theirs(final: Predictions) -> None:
    expected = GOLDEN["eval"]
    rows, classes = expected["rows"], expected["classes"]
    assert difference(final.boxes[0, rows], expected["boxes"]) < 1e-4
    assert difference(final.logits[0, rows][:, classes], expected["logits"]) < 1e-4


def test_masks_are_theirs(final: Predictions) -> None:
    expected = GOLDEN["eval"]["masks"]
    masks = final.masks.full()[0]
    assert list(masks.shape) == expected["shape"]
    first = expected["of_query_0_from_row_10_column_10"]
    assert difference(masks[0, 10:13, 10:14], first) < 1e-4
    assert difference(masks[-1, 70:72, 70:74], expected["of_the_last_query"]) < 1e-4
    # Of the 608,400 pixels, a few are so near to 0 that their sign depends on the processor.
    share = (masks > 0).double().mean().item()
    assert share == pytest.approx(expected["share_above_0"], abs=1e-5)


def test_all_training_losses_are_theirs(
    model: DetectionTransformer, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same points for all masks; rfdetr draws others for every mask."""

    def points_by_rule(features: MaskFeatures, count: int, *_: object) -> MaskFeatures:
        numbers = normal_numbers("points", (count, 2), GOLDEN["seed"]) % 1
        points = torch.from_numpy(numbers).float()
        return features.sampled_at(points.expand(len(features.pixels), -1, -1), "border")

    monkeypatch.setattr(MaskFeatures, "with_points", points_by_rule)
    expected = GOLDEN["training"]
    boxes = torch.tensor(expected["targets"]["boxes"])
    labels = torch.tensor(expected["targets"]["labels"])
    targets = [Target(labels, boxes, ellipse_masks(boxes, SIDE))]
    with torch.no_grad():
        losses = model.recipe.criterion()(model.train()(images, targets), targets)
    assert len(losses) == len(expected["losses"]) == len(LOSSES) * (1 + 4)
    for name, loss in losses.items():
        layer, term = name.split("/")
        suffix = {"proposals": "_enc", "layer3": ""}.get(layer, f"_{layer[-1]}")
        theirs = expected["losses"][LOSSES[term] + suffix]
        assert loss.item() == pytest.approx(theirs, rel=1e-4), name
