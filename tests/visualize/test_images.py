"""Pictures show what was found, whatever the picture, the boxes and the names."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from groupdetr.structures.detections import encoded
from groupdetr.visualize.images import draw_detections, draw_groups, palette, scale_for


def plain(mode: str = "RGB", size: tuple[int, int] = (96, 64)) -> Image.Image:
    return Image.new(mode, size)


def painted(image: Image.Image, colour: tuple[int, int, int]) -> np.ndarray:
    """[P,2] x,y of the pixels of one colour."""
    rows, columns = np.nonzero((np.asarray(image) == colour).all(axis=-1))
    return np.stack([columns, rows], axis=1)


def test_a_box_stands_where_it_was_found() -> None:
    drawn = draw_detections(plain(), [[10, 20, 50, 40]], [""], [palette(0)])
    outline = painted(drawn, palette(0))
    assert (outline.min(axis=0) - [10, 20] <= 2).all()
    assert ([50, 40] - outline.max(axis=0) <= 2).all()


def blob(*, rows: slice, columns: slice, size: tuple[int, int] = (96, 64)) -> np.ndarray:
    mask = np.zeros(size[::-1], dtype=bool)
    mask[rows, columns] = True
    return mask


def test_a_mask_stands_where_it_was_found_and_is_seen_through() -> None:
    """Its outline in its colour, its ground with something of the picture, and nothing beyond it."""
    mask = blob(rows=slice(20, 40), columns=slice(10, 50))
    grey = Image.new("RGB", (96, 64), (100, 100, 100))
    for scale in (1, 3):
        nowhere = [[np.nan] * 4]
        drawn = np.asarray(
            draw_detections(grey, nowhere, [""], [palette(0)], scale, encoded(mask[None]))
        ).astype(int)
        outline = painted(Image.fromarray(drawn.astype(np.uint8)), palette(0))
        assert abs(outline.min(axis=0) - np.multiply([10, 20], scale)).max() < scale
        assert abs(outline.max(axis=0) + 1 - np.multiply([50, 40], scale)).max() < scale
        middle = drawn[30 * scale, 30 * scale]
        assert all(min(p, 100) < m < max(p, 100) for m, p in zip(middle, palette(0)))
        assert (drawn[: 19 * scale] == 100).all()
        assert (drawn[:, 51 * scale :] == 100).all()


def test_a_small_mask_lies_on_a_large_one_whatever_their_order() -> None:
    masks = np.stack(
        [
            blob(rows=slice(30, 34), columns=slice(30, 34)),
            blob(rows=slice(0, 64), columns=slice(0, 96)),
        ]
    )
    for order in ([0, 1], [1, 0]):
        colours = [palette(i) for i in order]
        drawn = draw_detections(
            plain(), [[np.nan] * 4] * 2, [""] * 2, colours, 1, encoded(masks[order])
        )
        assert len(painted(drawn, palette(0))) == 12, "its outline, whole"


def test_masks_at_edges_and_empty_ones() -> None:
    masks = np.stack(
        [blob(rows=slice(0, 64), columns=slice(0, 96)), blob(rows=slice(0, 0), columns=slice(0, 0))]
    )
    drawn = draw_detections(
        plain("L"), np.zeros((2, 4)), ["a", "b"], [palette(1)] * 2, 2, encoded(masks)
    )
    assert drawn.size == (192, 128)
    assert draw_detections(plain(), np.zeros((0, 4)), [], [], masks=()).size == (96, 64)


def test_small_pictures_grow_and_large_ones_stay() -> None:
    assert scale_for(plain(size=(96, 96))) == 6
    assert scale_for(plain(size=(1920, 1080))) == 1
    assert draw_detections(plain(), np.zeros((0, 4)), [], [], scale=4).size == (384, 256)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "I;16", "1"])
def test_pictures_of_any_mode_are_drawn_and_left_alone(mode: str) -> None:
    image = plain(mode)
    before = image.tobytes()
    assert (
        draw_detections(image, torch.tensor([[1.0, 2, 30, 40]]), ["a"], [palette(1)]).mode == "RGB"
    )
    assert image.tobytes() == before


@pytest.mark.parametrize(
    "box",
    [
        *(
            [-50, -50, 10, 10],
            [90, 60, 200, 200],
            [200, 200, 300, 300],
            [-9, -9, 500, 500],
            [5, 5, 5, 5],
        ),
        *([40, 40, 10, 10], [float("nan"), 0, 1, 1], [0, 0, float("inf"), 5]),
    ],
)
def test_labels_never_leave_the_picture(box: list[float]) -> None:
    """A chip is pushed inside and its words are cut, so that its ground is seen across the whole picture."""
    for caption in ("cat 0.93", "x" * 400, "two\nlines", "日本語 \u202e", " "):
        draw_detections(plain(), [box], [caption], [palette(3)])
    if np.isfinite(box).all():
        chip = painted(draw_detections(plain(), [box], ["x" * 400], [palette(3)]), palette(3))
        assert len(chip) > 96 * 5


def test_chips_of_equal_boxes_do_not_hide_each_other() -> None:
    image = plain(size=(300, 200))
    drawn = draw_detections(
        image, [[60, 60, 160, 140]] * 2, ["cat", "dog"], [palette(0), palette(4)]
    )
    first, second = (len(painted(drawn, palette(i))) for i in (0, 4))
    assert first > 300
    assert second > 300


def test_the_palette_never_ends_and_starts_distinct() -> None:
    colours = [palette(i) for i in range(3000)]
    assert len(set(colours[:7])) == 7
    assert len(set(colours)) > 1000
    assert all(0 <= channel <= 255 for colour in colours for channel in colour)


def test_every_group_has_its_colour() -> None:
    boxes = np.array([[[10, 10, 40, 40], [14, 14, 48, 48], [18, 18, 56, 56]]], dtype=float)
    points = np.array([[[20, 20], [30, 25], [np.nan, np.nan]]])
    drawn = draw_groups(plain(), [[12, 12, 44, 44]], boxes, points, scale=4)
    assert drawn.size == (384, 256)
    assert all(len(painted(drawn, palette(group))) > 50 for group in range(3))


def test_groups_without_any_object() -> None:
    assert draw_groups(
        plain(), np.zeros((0, 4)), np.zeros((0, 3, 4)), np.zeros((0, 3, 2))
    ).size == (384, 256)
