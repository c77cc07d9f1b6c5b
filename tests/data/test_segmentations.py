"""Masks are drawn pixel by pixel as COCO draws them, and stay on their objects whatever is done to a picture."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as reference

from groupdetr.data import transforms
from groupdetr.data.batch import Draw, Pictures
from groupdetr.data.coco import read_split
from groupdetr.data.formats import load
from groupdetr.data.image_transform import Placement
from groupdetr.data.records import Record
from groupdetr.data.segmentations import Polygons, Runs, run_lengths
from groupdetr.data.synthetic import SyntheticConfig, draw
from groupdetr.data.transforms import View
from tests.dense import dense, dense_masks

SEEDS = st.integers(0, 10_000)
SIDES = st.integers(1, 50)
AS_RECORDED = Placement()


def polygons(seed: int, low: float = -20, high: float = 70) -> Polygons:
    """Up to three, of random corners, on coarse or fine grids: they cross themselves, each other and the edges."""
    rng = np.random.default_rng(seed)
    parts = [
        rng.uniform(low, high, (rng.integers(3, 9), 2)).round(rng.choice([0, 1, 2, 9]))
        for _ in range(1 + seed % 3)
    ]
    return Polygons(tuple(parts))


def noise(height: int, width: int, seed: int) -> np.ndarray:
    """[H,W] bool: nothing, some pixels, half of them, all."""
    rng = np.random.default_rng(seed)
    return rng.random((height, width)) < rng.choice([0.0, 0.02, 0.5, 1.0])


def as_runs(mask: np.ndarray) -> Runs:
    return Runs(reference.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"], mask.shape)


def by_coco(shape: Polygons, height: int, width: int) -> np.ndarray:
    parts = reference.frPyObjects([part.ravel().tolist() for part in shape.parts], height, width)
    return np.array(reference.decode(reference.merge(parts)), dtype=bool)


@given(height=SIDES, width=SIDES, seed=SEEDS)
def test_polygons_are_drawn_bit_for_bit_as_by_coco(height: int, width: int, seed: int) -> None:
    shape = polygons(seed)
    expected = by_coco(shape, height, width)
    drawn = shape.drawn(AS_RECORDED, (height, width))
    assert np.array_equal(dense(drawn, (height, width)), expected)
    assert drawn.window[2:] == tuple(
        np.ptp(np.argwhere(expected), axis=0)[::-1] + 1 if expected.any() else (0, 0)
    )
    assert reference.decode(shape.runs(height, width)).astype(bool).tolist() == expected.tolist()


@given(height=SIDES, width=SIDES, seed=SEEDS)
def test_run_lengths_are_drawn_as_they_were_recorded(height: int, width: int, seed: int) -> None:
    mask = noise(height, width, seed)
    shape = as_runs(mask)
    assert np.array_equal(dense(shape.drawn(AS_RECORDED, mask.shape), mask.shape), mask)
    assert np.array_equal(reference.decode(shape.runs(height, width)).astype(bool), mask)


@given(height=st.integers(1, 400), width=SIDES, seed=SEEDS)
def test_compressed_counts_are_read_as_by_coco(height: int, width: int, seed: int) -> None:
    mask = noise(height, width, seed)
    flat = mask.ravel(order="F")
    starts = np.flatnonzero(np.diff(flat, prepend=False))
    lengths = run_lengths(as_runs(mask).counts)
    assert lengths is not None
    assert lengths.tolist() == np.diff(starts, prepend=0, append=flat.size).tolist()


@pytest.mark.parametrize("counts", [b"/", b"p", b"P", b"0P", b"P" * 8 + b"0", b"P" * 200 + b"0"])
def test_counts_of_foreign_letters_without_an_end_or_of_too_many_digits_are_malformed(
    counts: bytes,
) -> None:
    assert run_lengths(counts) is None


@given(counts=st.binary(max_size=30))
def test_no_bytes_upset_the_reading_of_compressed_counts(counts: bytes) -> None:
    lengths = run_lengths(counts)
    assert lengths is None or len(lengths) <= len(counts)


# after transforms

Change = Callable[[View, np.random.Generator], View]


def flip(view: View, rng: np.random.Generator) -> View:
    del rng
    return view.flipped()


def crop(view: View, rng: np.random.Generator) -> View:
    sides = [int(rng.integers(1, side + 1)) for side in view.size]
    starts = [int(rng.integers(0, whole - side + 1)) for whole, side in zip(view.size, sides)]
    return view.cropped(*starts, *sides)


def pad(view: View, rng: np.random.Generator) -> View:
    height, width = (side + int(rng.integers(0, 6)) for side in view.size)
    return view.padded(height, width)


def resize(view: View, rng: np.random.Generator) -> View:
    return view.resized(*(max(1, round(side * rng.uniform(0.3, 3))) for side in view.size))


def no_larger(*more: Change) -> st.SearchStrategy[list[Change]]:
    """Changes of which none pads what was cropped."""
    before, after = ([flip, side, *more] for side in (pad, crop))
    return st.tuples(
        *(st.lists(st.sampled_from(some), max_size=3) for some in (before, after))
    ).map(lambda parts: [*parts[0], *parts[1]])


def enlarge(view: View, rng: np.random.Generator) -> View:
    return view.resized(*(side * int(rng.integers(1, 4)) for side in view.size))


def changed(mask: np.ndarray, changes: list[Change], seed: int) -> tuple[np.ndarray, Placement]:
    """A mask as a white thing on black, after changes: [H,W] grey levels, 128 where it was padded."""
    picture = torch.from_numpy(mask[:, :, None].repeat(3, 2) * np.uint8(255)).permute(2, 0, 1)
    view = View(picture, np.zeros((0, 4), dtype=np.float32))
    rng = np.random.default_rng(seed)
    for change in changes:
        view = change(view, rng)
    return view.picture[0].numpy(), view.placement


@given(height=SIDES, width=SIDES, seed=SEEDS, changes=no_larger())
def test_flipped_cropped_and_padded_run_lengths_are_the_picture_of_their_mask(
    height: int, width: int, seed: int, changes: list[Change]
) -> None:
    mask = noise(height, width, seed)
    levels, placement = changed(mask, changes, seed)
    assert np.array_equal(
        dense(as_runs(mask).drawn(placement, levels.shape), levels.shape), levels == 255
    )


@given(height=SIDES, width=SIDES, seed=SEEDS, before=st.booleans(), after=st.booleans())
def test_resized_run_lengths_lie_where_the_picture_of_their_mask_does(
    height: int, width: int, seed: int, before: bool, after: bool
) -> None:
    mask = noise(height, width, seed)
    levels, placement = changed(mask, [*[flip, crop] * before, resize, *[crop, flip] * after], seed)
    found = dense(as_runs(mask).drawn(placement, levels.shape), levels.shape)
    assert found[levels == 255].all()
    assert not found[levels == 0].any()


@given(
    height=SIDES, width=SIDES, to_height=SIDES, to_width=SIDES, flipped=st.booleans(), seed=SEEDS
)
def test_a_pixel_of_resized_run_lengths_is_what_its_centre_hits(
    height: int, width: int, to_height: int, to_width: int, flipped: bool, seed: int
) -> None:
    mask = noise(height, width, seed)
    changes: list[Change] = [*[flip] * flipped, lambda view, _: view.resized(to_height, to_width)]
    levels, placement = changed(mask, changes, seed)
    found = dense(as_runs(mask).drawn(placement, levels.shape), levels.shape)
    (y, between), (x, beside) = (
        np.divmod((2 * np.arange(to) + 1) * side, 2 * to)
        for to, side in ((to_height, height), (to_width, width))
    )
    y, x = y[between > 0], x[beside > 0]  # centres on the line between two pixels may hit either
    expected = (mask[:, ::-1] if flipped else mask)[y[:, None], x]
    assert np.array_equal(found[between > 0][:, beside > 0], expected)


@given(seed=SEEDS, changes=no_larger(enlarge))
def test_polygons_along_pixels_are_the_picture_of_their_mask_after_all_changes(
    seed: int, changes: list[Change]
) -> None:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(4, 20, 2).tolist()
    (x0, x1), (y0, y1) = (
        np.sort(rng.choice(side + 1, 2, replace=False)) for side in (width, height)
    )
    mask = np.zeros((height, width), dtype=bool)
    mask[y0:y1, x0:x1] = True
    shape = Polygons((np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], dtype=np.float64),))
    levels, placement = changed(mask, changes, seed)
    found = dense(shape.drawn(placement, levels.shape), levels.shape)
    assert found[levels == 255].all()
    assert not found[levels == 0].any()
    if enlarge not in changes:  # which makes soft edges
        assert np.array_equal(found, levels == 255)


@pytest.mark.parametrize(
    "augment", [transforms.training, transforms.jittering, transforms.flipping]
)
def test_masks_of_targets_are_what_is_seen_of_their_objects(
    tmp_path: Path, augment: Callable[[int], transforms.Transform]
) -> None:
    """Each object of a drawn picture is white on black in a picture of its own."""
    drawing = draw(SyntheticConfig(image_size=96, max_objects=4, min_objects=4), "train", 1)
    for number, (box, mask) in enumerate(zip(drawing.boxes, drawing.masks)):
        Image.fromarray(mask[:, :, None].repeat(3, 2) * np.uint8(255)).save(
            tmp_path / f"{number}.png"
        )
        x0, y0, x1, y1 = box.tolist()
        ones = np.ones(1)
        about = (
            np.array([[x0, y0, x1 - x0, y1 - y0]]),
            np.zeros(1, np.int64),
            ones,
            ones > 1,
            (1,),
            (as_runs(mask),),
        )
        pictures = Pictures(
            [Record(1, tmp_path / f"{number}.png", "", 96, 96, *about)], augment(80)
        )
        for epoch in range(20):
            picture, target, _ = pictures[Draw(epoch, 0)]
            assert target.masks is not None
            found = dense_masks(target.masks, picture.shape[1:])
            whole = found[0] if len(target) else torch.zeros_like(picture[0], dtype=torch.bool)
            assert whole[picture[0] == 255].all()
            assert not whole[picture[0] == 0].any()
            assert len(target) == int(whole.any()), "an object without a pixel is dropped"


def test_objects_that_a_crop_left_without_a_pixel_are_dropped_and_the_others_keep_their_masks(
    tmp_path: Path,
) -> None:
    Image.new("RGB", (90, 60)).save(tmp_path / "a.png")
    boxes = np.array([[50.0, 10, 20, 20], [0, 0, 20, 20], [30, 20, 20, 20], [35, 0, 20, 20]])
    triangles = [np.array([(x, y), (x + w, y), (x + w, y + h)]) for x, y, w, h in boxes.tolist()]
    ones = np.ones(4)
    about = (boxes, np.arange(4), ones, np.array([False, True, False, False]), (1, 2, 3, 4))
    record = Record(
        1, tmp_path / "a.png", "a.png", 90, 60, *about, tuple(Polygons((t,)) for t in triangles)
    )
    # Of the last two boxes a part is inside, but of the very last one's triangle no pixel.
    _, target, _ = Pictures([record], lambda view, _: view.cropped(0, 0, 60, 36))[0]
    assert target.labels.tolist() == [2]
    assert target.masks is not None
    expected = by_coco(Polygons((triangles[2],)), 60, 90)[:, :36]
    assert torch.equal(dense_masks(target.masks, (60, 36))[0], torch.from_numpy(expected))


# data sets


def test_masks_are_read_only_where_they_are_asked_for(shapes: Path) -> None:
    assert {record.shapes for record in load(shapes).splits["train"].records} == {None}
    pictures = Pictures(load(shapes).splits["train"].records, transforms.validation(48))
    assert pictures[0][1].masks is None
    for record in load(shapes, masks=True).splits["train"].records:
        assert record.shapes is not None
        assert len(record.shapes) == len(record.labels)


def test_synthetic_masks_are_those_that_were_drawn(shapes: Path) -> None:
    config = SyntheticConfig(image_size=48, num_classes=3, max_objects=3)
    for index, record in enumerate(load(shapes, masks=True).splits["train"].records):
        found = [
            dense(shape.drawn(AS_RECORDED, (48, 48)), (48, 48)) for shape in record.outlines() or ()
        ]
        assert np.array_equal(found, draw(config, "train", index).masks)


def test_images_without_an_object_to_learn_can_be_left_out(real_data: Path) -> None:
    split = load(real_data / "tiny_coco", masks=True).splits["train"]
    left = split.with_objects()
    assert (len(split), len(left)) == (50, 49)
    assert all(len(record.training()[1]) for record in left.records)


@pytest.mark.parametrize(
    "name", ["tiny_coco/train.json", "tiny_coco/val.json", "coco_eval/gt.json"]
)
def test_masks_of_real_data_are_drawn_bit_for_bit_as_by_coco(name: str, real_data: Path) -> None:
    file = real_data / name
    content = json.loads(file.read_text())
    recorded = {item["id"]: item["segmentation"] for item in content["annotations"]}
    split = read_split(file, file.parent / "images", "train", masks=True)
    seen = 0
    for record in split.records:
        size = (record.height, record.width)
        for key, shape in zip(record.annotation_ids, record.shapes or ()):
            expected = reference.frPyObjects(recorded[key], *size)
            expected = reference.merge(expected) if isinstance(expected, list) else expected
            assert shape.runs(*size) == {"size": list(size), "counts": expected["counts"]}
            mask = reference.decode(expected).astype(bool)
            assert np.array_equal(dense(shape.drawn(AS_RECORDED, size), size), mask)
            seen += 1
    assert seen == len(recorded)


def test_three_hundred_objects_of_a_real_picture_take_little_memory(real_data: Path) -> None:
    """A twentieth of what whole masks would, although some objects here are half as high as their picture."""
    record = max(
        load(real_data / "tiny_coco", masks=True).splits["train"].records,
        key=lambda r: len(r.labels),
    )
    assert record.shapes is not None
    rows = np.resize(np.flatnonzero(record.learned), 300)
    columns = [column[rows] for column in (record.boxes, record.labels, record.areas, record.crowd)]
    shapes = tuple(record.shapes[row] for row in rows)
    crowded = Record(
        1, record.path, "", record.width, record.height, *columns, (None,) * 300, shapes
    )
    picture, target, _ = Pictures([crowded], transforms.validation(800))[0]
    assert len(target) == 300
    assert target.masks is not None
    assert target.masks.pixels.nbytes + target.masks.windows.nbytes < 300 * picture[0].nbytes / 20
