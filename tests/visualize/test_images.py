"""Boxes, masks, labels and groups are drawn at the right positions on images of any kind."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from groupdetr.structures.detections import Detections, encode_masks, masks_to_boxes
from groupdetr.visualize.images import (
    DrawingCanvas,
    Rectangle,
    draw_boxes,
    draw_detections,
    draw_groups,
    instance_colours,
    palette,
    scale_for,
)

NO_BOX = [np.nan] * 4  # draws only the mask


def blank_image(mode: str = "RGB", size: tuple[int, int] = (96, 64)) -> Image.Image:
    return Image.new(mode, size)


def pixels_of(image: Image.Image, colour: tuple[int, int, int]) -> NDArray[np.int64]:
    """Return x,y of the pixels of one colour, [P,2]."""
    rows, columns = np.nonzero((np.asarray(image) == colour).all(axis=-1))
    return np.stack([columns, rows], axis=1)


def rectangle_mask(
    *, rows: slice, columns: slice, size: tuple[int, int] = (96, 64)
) -> NDArray[np.bool_]:
    mask = np.zeros(size[::-1], dtype=bool)
    mask[rows, columns] = True
    return mask


FULL_MASK = rectangle_mask(rows=slice(0, 64), columns=slice(0, 96))


def test_a_box_is_drawn_at_its_position() -> None:
    image = draw_boxes(blank_image(), [[10, 20, 50, 40]], [""], [palette(0)])
    outline = pixels_of(image, palette(0))
    assert (outline.min(axis=0) - [10, 20] <= 2).all()
    assert ([50, 40] - outline.max(axis=0) <= 2).all()


@pytest.mark.parametrize("scale", [1, 3])
def test_a_mask_is_drawn_at_its_position_and_is_translucent(scale: int) -> None:
    """The outline is opaque, the area mixes colour and image, and no pixel outside changes."""
    mask = rectangle_mask(rows=slice(20, 40), columns=slice(10, 50))
    grey = Image.new("RGB", (96, 64), (100, 100, 100))
    image = draw_boxes(grey, [NO_BOX], [""], [palette(0)], scale, encode_masks(mask[None]))
    outline = pixels_of(image, palette(0))
    assert abs(outline.min(axis=0) - np.multiply([10, 20], scale)).max() < scale
    assert abs(outline.max(axis=0) + 1 - np.multiply([50, 40], scale)).max() < scale

    pixels = np.asarray(image).astype(int)
    for channel, colour in zip(pixels[30 * scale, 30 * scale], palette(0)):
        assert min(colour, 100) < channel < max(colour, 100)
    assert (pixels[: 19 * scale] == 100).all()
    assert (pixels[:, 51 * scale :] == 100).all()


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_a_small_mask_lies_on_a_large_one_in_any_order(order: list[int]) -> None:
    small = rectangle_mask(rows=slice(30, 34), columns=slice(30, 34))
    masks = np.stack([small, FULL_MASK])[order]
    colours = [palette(index) for index in order]
    image = draw_boxes(blank_image(), [NO_BOX] * 2, [""] * 2, colours, 1, encode_masks(masks))
    assert len(pixels_of(image, palette(0))) == 12, "the complete outline of the small mask"


def test_masks_at_the_edges_and_empty_masks_can_be_drawn() -> None:
    empty = rectangle_mask(rows=slice(0, 0), columns=slice(0, 0))
    masks = encode_masks(np.stack([FULL_MASK, empty]))
    image = draw_boxes(blank_image("L"), np.zeros((2, 4)), ["a", "b"], [palette(1)] * 2, 2, masks)
    assert image.size == (192, 128)
    assert draw_boxes(blank_image(), np.zeros((0, 4)), [], [], masks=()).size == (96, 64)


def test_small_images_are_enlarged_and_large_ones_are_not() -> None:
    assert scale_for(blank_image(size=(96, 96))) == 6
    assert scale_for(blank_image(size=(1920, 1080))) == 1
    assert draw_boxes(blank_image(), np.zeros((0, 4)), [], [], scale=4).size == (384, 256)


@pytest.mark.parametrize("mode", ["P", "RGBA", "I;16"])
def test_images_of_any_mode_can_be_drawn_on_and_do_not_change(mode: str) -> None:
    image = blank_image(mode)
    before = image.tobytes()
    box = torch.tensor([[1.0, 2, 30, 40]])
    assert draw_boxes(image, box, ["a"], [palette(1)]).mode == "RGB"
    assert image.tobytes() == before


@pytest.mark.parametrize(
    "box",
    [
        [-50, -50, 10, 10],
        [90, 60, 200, 200],
        [200, 200, 300, 300],
        [-9, -9, 500, 500],
        [5, 5, 5, 5],
        [40, 40, 10, 10],
        [float("nan"), 0, 1, 1],
        [0, 0, float("inf"), 5],
    ],
)
def test_labels_never_leave_the_image(box: list[float]) -> None:
    """A label is moved into the image and its text is cut, so a long one has the full width."""
    odd = ("", " ", "two\nlines", "\x1b[31m", "a\0b", "\ud800", "日本語 \u202egpj")
    for caption in ("cat 0.93", "x" * 400, *odd):
        draw_boxes(blank_image(), [box], [caption], [palette(3)])
    if np.isfinite(box).all():
        image = draw_boxes(blank_image(), [box], ["x" * 400], [palette(3)])
        assert len(pixels_of(image, palette(3))) > 96 * 5


def test_labels_of_equal_boxes_do_not_hide_each_other() -> None:
    boxes = [[60, 60, 160, 140]] * 2
    colours = [palette(0), palette(4)]
    image = draw_boxes(blank_image(size=(300, 200)), boxes, ["cat", "dog"], colours)
    for colour in colours:
        assert len(pixels_of(image, colour)) > 300


def test_the_palette_never_ends_and_its_first_colours_differ() -> None:
    colours = [palette(index) for index in range(3000)]
    assert len(set(colours[:7])) == 7
    assert len(set(colours)) > 1000
    assert all(0 <= channel <= 255 for colour in colours for channel in colour)


def test_every_group_is_drawn_in_its_colour() -> None:
    boxes = np.array([[[10, 10, 40, 40], [14, 14, 48, 48], [18, 18, 56, 56]]], dtype=float)
    points = np.array([[[20, 20], [30, 25], [np.nan, np.nan]]])
    image = draw_groups(blank_image(), [[12, 12, 44, 44]], boxes, points, scale=4)
    assert image.size == (384, 256)
    assert all(len(pixels_of(image, palette(group))) > 50 for group in range(3))
    nothing = draw_groups(blank_image(), np.zeros((0, 4)), np.zeros((0, 3, 4)), np.zeros((0, 3, 2)))
    assert nothing.size == (384, 256)


# crowded images


@dataclass(frozen=True)
class Crowd:
    """An image of 320 x 256 pixels with 70 nuclei."""

    image: Image.Image
    detections: Detections
    captions: list[str]


@pytest.fixture(scope="module")
def crowd() -> Crowd:
    generator = np.random.default_rng(0)
    width, height = 320, 256
    rows, columns = np.mgrid[:height, :width]
    masks = []
    for _ in range(70):
        x, y = generator.uniform(8, width - 8), generator.uniform(8, height - 8)
        radius = generator.uniform(7, 13)
        masks.append(np.hypot(columns - x, 1.25 * (rows - y)) < radius)
    rles = encode_masks(np.stack(masks))
    scores = torch.linspace(0.99, 0.3, 70)
    labels = torch.zeros(70, dtype=torch.int64)
    detections = Detections(scores, labels, masks_to_boxes(rles).float(), rles)
    return Crowd(
        Image.new("RGB", (width, height), (225, 200, 215)),
        detections,
        [f"nucleus {score:.2f}" for score in scores],
    )


def label_pixels(crowd: Crowd, detections: Detections, scale: int) -> NDArray[np.bool_]:
    """Return [H,W] bool, True where labels were drawn."""
    with_labels = draw_detections(crowd.image, detections, crowd.captions, scale)
    without = draw_detections(crowd.image, detections, [""] * len(detections), scale)
    return (np.asarray(with_labels) != np.asarray(without)).any(axis=-1)


@pytest.mark.parametrize(("scale", "with_masks"), [(1, True), (2, False)])
def test_labels_cover_a_sixth_of_a_crowded_image_at_most(
    scale: int, with_masks: bool, crowd: Crowd
) -> None:
    detections = crowd.detections if with_masks else replace(crowd.detections, masks=None)
    labelled = label_pixels(crowd, detections, scale)
    assert 0.05 < labelled.mean() < 1 / 6
    # Nobody's nucleus is hidden: most of every box remains visible.
    for x0, y0, x1, y1 in (scale * crowd.detections.boxes).int().tolist():
        assert labelled[y0:y1, x0:x1].mean() < 0.9


def test_the_best_detections_of_a_crowded_image_have_labels(crowd: Crowd) -> None:
    """The labels of the best are drawn even if there are many others."""
    best = crowd.detections[:10]
    few = replace(crowd, captions=crowd.captions[:10])
    assert label_pixels(few, best, 2).mean() > 0.01
    all_labels = label_pixels(crowd, crowd.detections, 2)
    x0, y0, x1, y1 = (2 * crowd.detections.boxes[0]).int().tolist()
    assert all_labels[max(0, y0 - 25) : y1 + 25, max(0, x0 - 80) : x1 + 80].any()


def test_labels_do_not_cover_each_other(crowd: Crowd, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    draw = DrawingCanvas._draw_label

    def record(self: DrawingCanvas, label: Rectangle, *arguments: object) -> None:
        drawn.append(label)
        draw(self, label, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(DrawingCanvas, "_draw_label", record)
    draw_detections(crowd.image, crowd.detections, crowd.captions, 2)
    assert len(drawn) > 20
    assert not any(first.overlaps(second) for first, second in combinations(drawn, 2))


def test_neighbouring_instances_of_one_class_have_different_colours(crowd: Crowd) -> None:
    boxes = crowd.detections.boxes.numpy()
    colours = instance_colours(boxes)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    for first, second in combinations(range(len(boxes)), 2):
        if np.hypot(*(centres[first] - centres[second])) < 25:
            assert colours[first] != colours[second]


def test_masks_of_one_class_have_different_colours_and_their_boxes_that_of_the_class() -> None:
    left = rectangle_mask(rows=slice(10, 50), columns=slice(5, 45))
    right = rectangle_mask(rows=slice(10, 50), columns=slice(45, 85))
    rles = encode_masks(np.stack([left, right]))
    labels = torch.tensor([3, 3])
    detections = Detections(torch.ones(2), labels, masks_to_boxes(rles).float(), rles)
    pixels = np.asarray(draw_detections(blank_image(), detections, ["", ""]))
    assert (pixels[30, 25] != pixels[30, 65]).any()
    assert len(pixels_of(Image.fromarray(pixels), palette(3))) > 100


def test_every_label_of_a_sparse_image_is_drawn() -> None:
    boxes = [[20, 40, 100, 120], [150, 60, 260, 160], [40, 140, 120, 190]]
    colours = [palette(index) for index in range(3)]
    without = draw_boxes(blank_image(size=(300, 200)), boxes, ["", "", ""], colours)
    image = draw_boxes(blank_image(size=(300, 200)), boxes, ["a", "b", "c"], colours)
    for colour in colours:
        assert len(pixels_of(image, colour)) > len(pixels_of(without, colour)) + 50
