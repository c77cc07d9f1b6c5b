"""The matched queries of Fig. 3: of a detector of boxes, and of one of masks.

The first has reference points, the second has none.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from groupdetr.analysis.matched_queries import MatchedQueries, matched_queries
from groupdetr.data.layouts import load
from groupdetr.settings import Settings
from groupdetr.structures.assignment import Assignment
from groupdetr.structures.images import Images
from groupdetr.structures.masks import MaskFeatures, MaskPredictions
from groupdetr.structures.outputs import Outputs
from groupdetr.structures.predictions import Predictions
from groupdetr.structures.queries import Queries
from groupdetr.tasks.detection2d.instance_segmentation import InstanceTask
from tests.tasks.detection2d.segmenter import rectangles, write_data

K, N = 3, 4


class ConstantDetector(nn.Module):
    """Two layers with the same predictions [1,K,N,.] for every image."""

    def __init__(
        self, reference: Tensor, location: Tensor, features: MaskFeatures | None = None
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        predictions = Predictions(torch.zeros(1, K, N, 3), location, features)
        queries = Queries(torch.zeros(1, K, N, 8), nn.Parameter(reference))
        self.outputs = Outputs([predictions, predictions], queries)
        self.queries = SimpleNamespace(inference_group=0)

    def forward(self, images: Images) -> Outputs:
        return self.outputs


class ConstantCriterion:
    """Object 0 has query 1 of group 0 and query 2 of group 2. Group 1 has no match."""

    def assign(self, *_: object) -> Assignment:
        zeros, group, query = (np.array([row, row]) for row in ([0, 0], [0, 2], [1, 2]))
        return Assignment.from_columns(zeros, group, query, zeros)


def match_first_image(model: nn.Module, folder: Path) -> MatchedQueries:
    task = InstanceTask(load(write_data(folder), masks=True), Settings(imgsz=48), num_detections=10)
    return matched_queries(model, ConstantCriterion(), task.val, 0)  # type: ignore[arg-type]


def test_boxes_and_reference_points_of_the_matched_queries(tmp_path: Path) -> None:
    boxes, reference = torch.rand(1, K, N, 4), torch.rand(1, K, N, 2)
    boxes[0, 0, 1] = torch.tensor([0.5, 0.5, 0.25, 0.5])
    matched = match_first_image(ConstantDetector(reference, boxes), tmp_path)
    (_, (x, y, w, h)), _ = rectangles(0)
    assert matched.boxes[0].tolist() == pytest.approx([x, y, x + w, y + h], abs=1e-4)
    first_group = matched.predicted_boxes[0, 0].tolist()
    assert first_group == pytest.approx([24, 12, 40, 36], abs=1e-4)
    assert np.isnan(matched.predicted_boxes[0, 1]).all()
    assert np.isnan(matched.predicted_boxes[1]).all()
    expected = reference[0, [0, 2], [1, 2]] * torch.tensor([64, 48])
    np.testing.assert_allclose(matched.points[0, [0, 2]], expected.numpy())


def test_the_boxes_around_masks_and_their_centres(tmp_path: Path) -> None:
    pixels = torch.full((1, 8, 14, 18), -1.0)  # of 56 x 72 pixels, of which 48 x 64 are the image
    pixels[0, 1, 3:5, 2:8] = 1
    pixels[0, 2, 10:, 12:] = 1  # extends into the padding
    features = MaskFeatures(pixels, torch.tensor([[48, 64]]))
    no_reference = torch.zeros(1, K, N, 0)
    embedding = torch.eye(8)[:N].expand(1, K, N, 8)
    matched = match_first_image(ConstantDetector(no_reference, embedding, features), tmp_path)
    boxes = matched.predicted_boxes[0]
    assert boxes[0].tolist() == pytest.approx([8, 12, 32, 20], abs=1e-4)
    assert boxes[2].tolist() == pytest.approx([48, 40, 64, 48], abs=1e-4)
    assert matched.points[0, 0].tolist() == pytest.approx([20, 16], abs=1e-4)
    assert matched.points[0, 2].tolist() == pytest.approx([56, 44], abs=1e-4)

    empty_masks = ConstantDetector(no_reference, torch.zeros(1, K, N, 8), features)
    matched = match_first_image(empty_masks, tmp_path / "empty")
    assert np.isnan(matched.predicted_boxes).all(), "an empty mask has no box"
    assert np.isnan(matched.points).all()


@pytest.mark.parametrize("axes", [(), (3,), (3, 5)])
def test_the_boxes_around_masks_for_any_axes(axes: tuple[int, ...]) -> None:
    """Against the extent of every mask, computed one by one."""
    generator = torch.Generator().manual_seed(1)
    sizes = [(24, 36), (17, 30)]
    coarse = torch.randn(2, 5, 2, 3, generator=generator)
    pixels = nn.functional.interpolate(coarse, (6, 9), mode="bicubic")
    embedding = torch.randn(2, *axes, 4, 5, generator=generator)
    embedding[..., 0, :] = 0
    masks = MaskPredictions(embedding, MaskFeatures(pixels, torch.tensor(sizes)))
    boxes = masks.boxes()
    assert boxes.shape == (2, *axes, 4, 4)
    assert not boxes[..., 0, :].any(), "an empty mask has no box"
    for image, (height, width) in enumerate(sizes):
        # A pixel of the features has 4 pixels of the image, of which the last may be padding.
        rows_inside, columns_inside = -(-height // 4), -(-width // 4)
        logits = masks.full()[image].flatten(0, -3)[:, :rows_inside, :columns_inside]
        for mask, (cx, cy, w, h) in zip(logits > 0, boxes[image].flatten(0, -2).tolist()):
            if not mask.any():
                continue
            rows, columns = mask.nonzero().unbind(1)
            expected = [
                4 * int(columns.min()),
                4 * int(rows.min()),
                min(width, 4 * int(columns.max()) + 4),
                min(height, 4 * int(rows.max()) + 4),
            ]
            corners = [
                width * (cx - w / 2),
                height * (cy - h / 2),
                width * (cx + w / 2),
                height * (cy + h / 2),
            ]
            assert corners == pytest.approx(expected, abs=1e-4)
