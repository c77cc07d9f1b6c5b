"""Fig. 3 of any detector: those that say boxes, and those that say masks and look everywhere."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from groupdetr.analysis.matched_queries import MatchedQueries, matched_queries
from groupdetr.data.formats import load
from groupdetr.settings import Settings
from groupdetr.structures.assignment import Assignment
from groupdetr.structures.images import Images
from groupdetr.structures.masks import Canvas, Masks
from groupdetr.structures.outputs import Outputs
from groupdetr.structures.predictions import Predictions
from groupdetr.structures.queries import Queries
from groupdetr.tasks.detection2d.instance_segmentation import InstanceTask
from tests.tasks.detection2d.segmenter import draw, rectangles

K, N = 3, 4


class Says(nn.Module):
    """The same of every picture: two layers of predictions [1,K,N,.]."""

    def __init__(self, reference: Tensor, **place: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        said = Predictions(torch.zeros(1, K, N, 3), **place)
        self.outputs = Outputs(
            [said, said], Queries(torch.zeros(1, K, N, 8), nn.Parameter(reference))
        )
        self.queries = SimpleNamespace(inference_group=0)

    def forward(self, images: Images) -> Outputs:
        del images
        return self.outputs


class Assigns:
    """Object 0 to query 1 of group 0 and to query 2 of group 2; group 1 has nothing."""

    def assign(self, *_: object) -> Assignment:
        zero, group, query = (np.array([row, row]) for row in ([0, 0], [0, 2], [1, 2]))
        return Assignment.of(zero, group, query, zero)


def asked(model: nn.Module, folder: Path) -> MatchedQueries:
    task = InstanceTask(load(draw(folder), masks=True), Settings(imgsz=48), most=10)
    return matched_queries(model, Assigns(), task.val, 0)  # type: ignore[arg-type]


def test_boxes_and_the_points_where_their_queries_look(tmp_path: Path) -> None:
    boxes, reference = torch.rand(1, K, N, 4), torch.rand(1, K, N, 2)
    boxes[0, 0, 1] = torch.tensor([0.5, 0.5, 0.25, 0.5])
    found = asked(Says(reference, boxes=boxes), tmp_path)
    (_, (x, y, w, h)), _ = rectangles(0)
    assert found.boxes[0].tolist() == pytest.approx([x, y, x + w, y + h], abs=1e-4)
    assert found.said[0, 0].tolist() == pytest.approx([24, 12, 40, 36], abs=1e-4)
    assert np.isnan(found.said[0, 1]).all()
    assert np.isnan(found.said[1]).all()
    size = torch.tensor([64, 48])
    np.testing.assert_allclose(
        found.points[0, [0, 2]], (reference[0, [0, 2], [1, 2]] * size).numpy()
    )


def test_masks_have_the_boxes_around_them_and_their_middle(tmp_path: Path) -> None:
    pixels = torch.full((1, 8, 14, 18), -1.0)  # of 56 x 72 pixels, of which 48 x 64 are the picture
    pixels[0, 1, 3:5, 2:8] = 1
    pixels[0, 2, 10:, 12:] = 1  # and on into the padding
    embedding = torch.eye(8)[:N].expand(1, K, N, 8)
    masks = Masks(embedding, Canvas(pixels, torch.tensor([[48, 64]])))
    found = asked(Says(torch.zeros(1, K, N, 0), masks=masks), tmp_path)
    assert found.said[0, 0].tolist() == pytest.approx([8, 12, 32, 20], abs=1e-4)
    assert found.said[0, 2].tolist() == pytest.approx([48, 40, 64, 48], abs=1e-4)
    masks.embedding = torch.zeros(1, K, N, 8)
    nowhere = asked(Says(torch.zeros(1, K, N, 0), masks=masks), tmp_path / "again")
    assert np.isnan(nowhere.said).all()
    assert np.isnan(nowhere.points).all(), "an empty mask is nowhere"
    assert found.points[0, 0].tolist() == pytest.approx([20, 16], abs=1e-4)
    assert found.points[0, 2].tolist() == pytest.approx([56, 44], abs=1e-4)


@pytest.mark.parametrize("axes", [(), (3,), (3, 5)])
def test_the_boxes_around_masks(axes: tuple[int, ...]) -> None:
    """Whatever axes there are, one by one."""
    draw = torch.Generator().manual_seed(1)
    sizes = [(24, 36), (17, 30)]
    pixels = torch.nn.functional.interpolate(
        torch.randn(2, 5, 2, 3, generator=draw), (6, 9), mode="bicubic"
    )
    masks = Masks(torch.randn(2, *axes, 4, 5, generator=draw), Canvas(pixels, torch.tensor(sizes)))
    masks.embedding[..., 0, :] = 0
    said = masks.boxes()
    assert said.shape == (2, *axes, 4, 4)
    assert not said[..., 0, :].any(), "an empty mask has no box"
    for image, (height, width) in enumerate(sizes):
        inside = masks.full()[image].flatten(0, -3)[:, : -(-height // 4), : -(-width // 4)] > 0
        for mask, (cx, cy, w, h) in zip(inside, said[image].flatten(0, -2).tolist()):
            if mask.any():
                rows, columns = mask.nonzero().unbind(1)
                x1, y1 = (
                    min(width, 4 * int(columns.max()) + 4),
                    min(height, 4 * int(rows.max()) + 4),
                )
                expected = [4 * int(columns.min()), 4 * int(rows.min()), x1, y1]
                corners = [
                    width * (cx - w / 2),
                    height * (cy - h / 2),
                    width * (cx + w / 2),
                    height * (cy + h / 2),
                ]
                assert corners == pytest.approx(expected, abs=1e-4)
