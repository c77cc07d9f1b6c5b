"""The network that is exported."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from groupdetr.deployment.graph import single_group
from groupdetr.structures.images import Images
from groupdetr.tasks.detection2d.prediction import Detector
from tests.deployment.exports import SMALL, write_weights


@pytest.mark.parametrize("preset", ["conditional-detr-tiny", "dino-tiny"])
def test_an_exported_detector_has_the_group_that_answers_and_no_other(
    preset: str, tmp_path: Path
) -> None:
    """Also if it is not group 0, as in a file of `groupdetr groups --best`."""
    file = tmp_path / "best-group.safetensors"
    write_weights(file, preset, **{**SMALL, "num_groups": 3, "inference_group": 2})
    detector = Detector(file, "cpu")
    single = single_group(detector.recipe, file)
    images = Images.from_list([torch.rand(3, 64, 96)])
    with torch.no_grad():
        alone, expected = single(images).final, detector.model(images).final
    torch.testing.assert_close(alone.logits, expected.logits)
    torch.testing.assert_close(alone.boxes, expected.boxes)
    assert single.recipe.num_groups == 1
