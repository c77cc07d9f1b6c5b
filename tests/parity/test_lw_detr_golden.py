"""LW-DETR-tiny and RF-DETR-nano equal the published code, with weights and images by rule.

The weights are loaded under the published names. RF-DETR has 100 queries here, because with 300 of
576 tokens neighbouring ranks differ by rounding errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from groupdetr.checkpoints.checkpoint import Checkpoint
from groupdetr.checkpoints.layout import Layout
from groupdetr.detectors.lw_detr import LW_DETR_TINY, LWDETR
from groupdetr.detectors.rf_detr import RF_DETR_NANO
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.structures.images import Images
from groupdetr.structures.outputs import Outputs
from groupdetr.structures.targets import Target
from groupdetr.weights.official_lw_detr import OFFICIAL_LW_DETR
from groupdetr.weights.roboflow_rf_detr import ROBOFLOW_RF_DETR

from .by_rule import golden_image, golden_state, read_golden

# The end of the published names of losses
PUBLISHED_TERMS = {"iou_aware_bce": "loss_ce", "l1": "loss_bbox", "giou": "loss_giou"}
WEIGHTS = {"iou_aware_bce": 1.0, "l1": 5.0, "giou": 2.0}


@dataclass(frozen=True)
class Published:
    """A published detector: the file of its golden values, its recipe and its layout."""

    file: str
    recipe: LWDETR
    layout: Layout

    @property
    def golden(self) -> dict[str, Any]:
        return read_golden(self.file)

    def cases(self) -> list[dict[str, Any]]:
        """Return the images and their predictions."""
        golden = self.golden
        if "image" in golden:
            return [{"image": golden["image"], **golden["eval"]}]
        return list(golden["eval"])


DETECTORS = {
    "lw-detr-tiny": Published(
        "lw_detr_tiny.json", replace(LW_DETR_TINY, num_groups=13), OFFICIAL_LW_DETR
    ),
    "rf-detr-nano": Published(
        "rf_detr_nano.json",
        replace(RF_DETR_NANO, num_groups=13, num_queries=100),
        ROBOFLOW_RF_DETR,
    ),
}
CASES = [
    pytest.param(name, index, id=f"{name}-{case['image']['height']}")
    for name, published in DETECTORS.items()
    for index, case in enumerate(published.cases())
]


@cache
def loaded(name: str) -> DetectionTransformer:
    """Return the detector with the weights of its file."""
    published = DETECTORS[name]
    weights = {key: torch.from_numpy(x) for key, x in golden_state(published.golden).items()}
    model = published.recipe.build()
    state = published.layout.convert(Checkpoint(weights, {}, published.file)).state
    state = {key: x.view_as(model.state_dict()[key]) for key, x in state.items()}
    result = model.load_state_dict(state, strict=False)
    assert not result.unexpected_keys
    parameters = dict(model.named_parameters())
    assert not parameters.keys() & set(result.missing_keys)
    return model


def image_of(published: Published, case: Mapping[str, Any]) -> Images:
    described = {"image": case["image"], "seed": published.golden["seed"]}
    return Images.from_list([torch.from_numpy(golden_image(described))])


def difference(ours: Tensor, published: list[Any]) -> float:
    return float((ours.detach() - torch.tensor(published)).abs().max())


@pytest.mark.parametrize(("name", "index"), CASES)
def test_predictions_equal_those_of_the_published_code(name: str, index: int) -> None:
    """One image of RF-DETR has another size, for which its positions are interpolated."""
    published = DETECTORS[name]
    case = published.cases()[index]
    with torch.no_grad():
        outputs = loaded(name).eval()(image_of(published, case))
    assert outputs.queries is not None
    rows, classes = case["rows"], case["classes"]
    assert difference(outputs.queries.reference[0, 0, rows], case["start"]) < 1e-5
    assert difference(outputs.final.boxes[0, rows], case["boxes"]) < 1e-5
    assert difference(outputs.final.logits[0, rows][:, classes], case["logits"]) < 1e-4


@pytest.mark.parametrize("name", DETECTORS)
def test_the_losses_of_all_groups_equal_those_of_the_published_code(name: str) -> None:
    """So do the predictions of queries of several groups."""
    published = DETECTORS[name]
    case, training = published.cases()[0], published.golden["training"]
    model = loaded(name).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # as for the golden values
    target = Target(
        torch.tensor(training["targets"]["labels"]), torch.tensor(training["targets"]["boxes"])
    )
    with torch.no_grad():
        outputs = model(image_of(published, case), [target])
        losses = published.recipe.criterion()(outputs, [target])
    final = flat_predictions(outputs)
    rows = training["rows_of_all_groups"]
    assert difference(final[0][rows][:, case["classes"]], training["logits"]) < 1e-4
    assert difference(final[1][rows], training["boxes"]) < 1e-5
    assert len(losses) == len(training["losses"])
    for loss_name, loss in losses.items():
        stage, term = loss_name.split("/")
        expected = training["losses"][PUBLISHED_TERMS[term] + suffix(stage, published.recipe)]
        assert float(loss) == pytest.approx(WEIGHTS[term] * expected, rel=1e-4), loss_name


def flat_predictions(outputs: Outputs) -> tuple[Tensor, Tensor]:
    """Return the logits [K*N,classes] and the boxes [K*N,4] of the last layer."""
    last = outputs.layers[-1]
    return last.logits[0].flatten(0, 1), last.boxes[0].flatten(0, 1)


def suffix(stage: str, recipe: LWDETR) -> str:
    """Return the end of the published name of a loss: nothing for the last layer."""
    if stage == "proposals":
        return "_enc"
    layer = int(stage.removeprefix("layer"))
    return "" if layer == recipe.decoder_layers - 1 else f"_{layer}"
