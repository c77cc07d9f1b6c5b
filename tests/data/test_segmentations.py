"""Masks are rasterised bit for bit as by COCO, and stay on their objects under augmentation."""

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
from groupdetr.data.coco import read_split
from groupdetr.data.dataset import DetectionDataset, SampleIndex
from groupdetr.data.image_transform import ImageTransform
from groupdetr.data.layouts import load
from groupdetr.data.records import Record
from groupdetr.data.segmentations import Polygons, RunLengths, decode_counts
from groupdetr.data.synthetic import SyntheticConfig, generate_image
from groupdetr.data.transforms import AugmentedImage
from tests.dense import dense, dense_masks

SEEDS = st.integers(0, 10_000)
SIDES = st.integers(1, 50)
IDENTITY = ImageTransform()


def random_polygons(seed: int, low: float = -20, high: float = 70) -> Polygons:
    """Return one to three polygons with random corners, on coarse or fine grids.

    They cross themselves, each other and the border of the image.
    """
    rng = np.random.default_rng(seed)
    parts = []
    for _ in range(1 + seed % 3):
        corners = rng.uniform(low, high, (rng.integers(3, 9), 2))
        parts.append(corners.round(rng.choice([0, 1, 2, 9])))
    return Polygons(tuple(parts))


def random_mask(height: int, width: int, seed: int) -> np.ndarray:
    """Return a mask [H,W] bool in which no, some, half or all of the pixels are True."""
    rng = np.random.default_rng(seed)
    return rng.random((height, width)) < rng.choice([0.0, 0.02, 0.5, 1.0])


def to_run_lengths(mask: np.ndarray) -> RunLengths:
    encoded = reference.encode(np.asfortranarray(mask, dtype=np.uint8))
    return RunLengths(encoded["counts"], mask.shape)


def rasterised_by_coco(polygons: Polygons, height: int, width: int) -> np.ndarray:
    coordinates = [part.ravel().tolist() for part in polygons.parts]
    parts = reference.frPyObjects(coordinates, height, width)
    return np.array(reference.decode(reference.merge(parts)), dtype=bool)


def white_on_black(mask: np.ndarray) -> np.ndarray:
    """Return an image [H,W,3] uint8 of a mask."""
    return mask[:, :, None].repeat(3, 2) * np.uint8(255)


@given(height=SIDES, width=SIDES, seed=SEEDS)
def test_polygons_are_rasterised_bit_for_bit_as_by_coco(height: int, width: int, seed: int) -> None:
    polygons = random_polygons(seed)
    expected = rasterised_by_coco(polygons, height, width)
    mask = polygons.rasterise(IDENTITY, (height, width))
    assert np.array_equal(dense(mask, (height, width)), expected)
    tight_size = (0, 0)  # width, height
    if expected.any():
        tight_size = tuple(np.ptp(np.argwhere(expected), axis=0)[::-1] + 1)
    assert mask.window[2:] == tight_size
    decoded = reference.decode(polygons.to_rle(height, width)).astype(bool)
    assert decoded.tolist() == expected.tolist()


@given(height=SIDES, width=SIDES, seed=SEEDS)
def test_run_lengths_are_rasterised_as_recorded(height: int, width: int, seed: int) -> None:
    mask = random_mask(height, width, seed)
    run_lengths = to_run_lengths(mask)
    assert np.array_equal(dense(run_lengths.rasterise(IDENTITY, mask.shape), mask.shape), mask)
    assert np.array_equal(reference.decode(run_lengths.to_rle(height, width)).astype(bool), mask)


@given(height=st.integers(1, 400), width=SIDES, seed=SEEDS)
def test_compressed_counts_are_decoded_as_by_coco(height: int, width: int, seed: int) -> None:
    mask = random_mask(height, width, seed)
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat, prepend=False))
    lengths = decode_counts(to_run_lengths(mask).counts)
    assert lengths is not None
    assert lengths.tolist() == np.diff(changes, prepend=0, append=flat.size).tolist()


@pytest.mark.parametrize("counts", [b"/", b"p", b"P", b"0P", b"P" * 8 + b"0", b"P" * 200 + b"0"])
def test_counts_of_other_characters_without_an_end_or_of_too_many_digits_are_malformed(
    counts: bytes,
) -> None:
    assert decode_counts(counts) is None


@given(counts=st.binary(max_size=30))
def test_random_bytes_do_not_make_the_decoding_of_counts_fail(counts: bytes) -> None:
    lengths = decode_counts(counts)
    assert lengths is None or len(lengths) <= len(counts)


# after transforms

Change = Callable[[AugmentedImage, np.random.Generator], AugmentedImage]


def flip(image: AugmentedImage, rng: np.random.Generator) -> AugmentedImage:
    return image.flipped()


def crop(image: AugmentedImage, rng: np.random.Generator) -> AugmentedImage:
    height, width = (int(rng.integers(1, side + 1)) for side in image.size)
    top = int(rng.integers(0, image.size[0] - height + 1))
    left = int(rng.integers(0, image.size[1] - width + 1))
    return image.cropped(top, left, height, width)


def pad(image: AugmentedImage, rng: np.random.Generator) -> AugmentedImage:
    height, width = (side + int(rng.integers(0, 6)) for side in image.size)
    return image.padded(height, width)


def resize(image: AugmentedImage, rng: np.random.Generator) -> AugmentedImage:
    height, width = (max(1, round(side * rng.uniform(0.3, 3))) for side in image.size)
    return image.resized(height, width)


def enlarge(image: AugmentedImage, rng: np.random.Generator) -> AugmentedImage:
    height, width = (side * int(rng.integers(1, 4)) for side in image.size)
    return image.resized(height, width)


def changes_without_padding_after_crop(*more: Change) -> st.SearchStrategy[list[Change]]:
    """Lists of changes in which no padding follows a crop; `AugmentedImage.padded` forbids that."""
    before = st.lists(st.sampled_from([flip, pad, *more]), max_size=3)
    after = st.lists(st.sampled_from([flip, crop, *more]), max_size=3)
    return st.tuples(before, after).map(lambda parts: [*parts[0], *parts[1]])


def changed_image(
    mask: np.ndarray, changes: list[Change], seed: int
) -> tuple[np.ndarray, ImageTransform]:
    """Apply changes to an image of a mask, white on black.

    Returns grey levels [H,W], 128 in the padding, and the transform from the original.
    """
    pixels = torch.from_numpy(white_on_black(mask)).permute(2, 0, 1)
    image = AugmentedImage(pixels, np.zeros((0, 4), dtype=np.float32))
    rng = np.random.default_rng(seed)
    for change in changes:
        image = change(image, rng)
    return image.image[0].numpy(), image.from_original


@given(height=SIDES, width=SIDES, seed=SEEDS, changes=changes_without_padding_after_crop())
def test_flipped_cropped_and_padded_run_lengths_equal_the_image_of_their_mask(
    height: int, width: int, seed: int, changes: list[Change]
) -> None:
    mask = random_mask(height, width, seed)
    levels, transform = changed_image(mask, changes, seed)
    rasterised = to_run_lengths(mask).rasterise(transform, levels.shape)
    assert np.array_equal(dense(rasterised, levels.shape), levels == 255)


@given(height=SIDES, width=SIDES, seed=SEEDS, before=st.booleans(), after=st.booleans())
def test_resized_run_lengths_agree_with_the_resized_image_of_their_mask(
    height: int, width: int, seed: int, before: bool, after: bool
) -> None:
    mask = random_mask(height, width, seed)
    changes = [*[flip, crop] * before, resize, *[crop, flip] * after]
    levels, transform = changed_image(mask, changes, seed)
    rasterised = dense(to_run_lengths(mask).rasterise(transform, levels.shape), levels.shape)
    assert rasterised[levels == 255].all()
    assert not rasterised[levels == 0].any()


@given(
    height=SIDES, width=SIDES, new_height=SIDES, new_width=SIDES, flipped=st.booleans(), seed=SEEDS
)
def test_a_pixel_of_resized_run_lengths_has_the_value_at_its_centre(
    height: int, width: int, new_height: int, new_width: int, flipped: bool, seed: int
) -> None:
    mask = random_mask(height, width, seed)
    changes: list[Change] = [
        *[flip] * flipped,
        lambda image, _: image.resized(new_height, new_width),
    ]
    levels, transform = changed_image(mask, changes, seed)
    rasterised = dense(to_run_lengths(mask).rasterise(transform, levels.shape), levels.shape)
    # The centre of new pixel i is at (2 i + 1) * side / (2 * new side) of the original pixels.
    y, y_remainder = np.divmod((2 * np.arange(new_height) + 1) * height, 2 * new_height)
    x, x_remainder = np.divmod((2 * np.arange(new_width) + 1) * width, 2 * new_width)
    # Centres on the line between two pixels may take the value of either.
    clear_rows, clear_columns = y_remainder > 0, x_remainder > 0
    original = mask[:, ::-1] if flipped else mask
    expected = original[y[clear_rows][:, None], x[clear_columns]]
    assert np.array_equal(rasterised[clear_rows][:, clear_columns], expected)


@given(seed=SEEDS, changes=changes_without_padding_after_crop(enlarge))
def test_polygons_along_pixels_equal_the_image_of_their_mask_after_all_changes(
    seed: int, changes: list[Change]
) -> None:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(4, 20, 2).tolist()
    x0, x1 = np.sort(rng.choice(width + 1, 2, replace=False))
    y0, y1 = np.sort(rng.choice(height + 1, 2, replace=False))
    mask = np.zeros((height, width), dtype=bool)
    mask[y0:y1, x0:x1] = True
    corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    polygons = Polygons((np.array(corners, dtype=np.float64),))
    levels, transform = changed_image(mask, changes, seed)
    rasterised = dense(polygons.rasterise(transform, levels.shape), levels.shape)
    assert rasterised[levels == 255].all()
    assert not rasterised[levels == 0].any()
    if enlarge not in changes:  # enlarging makes soft edges
        assert np.array_equal(rasterised, levels == 255)


@pytest.mark.parametrize("create", [transforms.detr_transform, transforms.lsj_transform])
def test_masks_of_targets_cover_the_visible_parts_of_their_objects(
    tmp_path: Path, create: Callable[[int], transforms.Transform]
) -> None:
    """Each object of a synthetic image is drawn white on black, in an image of its own."""
    synthetic = generate_image(
        SyntheticConfig(image_size=96, max_objects=4, min_objects=4), "train", 1
    )
    for number, (box, mask) in enumerate(zip(synthetic.boxes, synthetic.masks)):
        path = tmp_path / f"{number}.png"
        Image.fromarray(white_on_black(mask)).save(path)
        x0, y0, x1, y1 = box.tolist()
        record = Record(
            image_id=1,
            path=path,
            file_name="",
            width=96,
            height=96,
            boxes=np.array([[x0, y0, x1 - x0, y1 - y0]]),
            labels=np.zeros(1, np.int64),
            areas=np.ones(1),
            crowd=np.zeros(1, dtype=bool),
            annotation_ids=(1,),
            segmentations=(to_run_lengths(mask),),
        )
        dataset = DetectionDataset([record], create(80))
        for epoch in range(20):
            image, target, _ = dataset[SampleIndex(epoch, 0)]
            assert target.masks is not None
            masks = dense_masks(target.masks, image.shape[1:])
            visible = masks[0] if len(target) else torch.zeros_like(image[0], dtype=torch.bool)
            assert visible[image[0] == 255].all()
            assert not visible[image[0] == 0].any()
            assert len(target) == int(visible.any()), "an object without a pixel is dropped"


def test_objects_that_a_crop_leaves_without_a_pixel_are_dropped_and_the_others_keep_their_masks(
    tmp_path: Path,
) -> None:
    Image.new("RGB", (90, 60)).save(tmp_path / "a.png")
    boxes = np.array([[50.0, 10, 20, 20], [0, 0, 20, 20], [30, 20, 20, 20], [35, 0, 20, 20]])
    triangles = []
    for x, y, w, h in boxes.tolist():
        triangles.append(Polygons((np.array([(x, y), (x + w, y), (x + w, y + h)]),)))
    record = Record(
        image_id=1,
        path=tmp_path / "a.png",
        file_name="a.png",
        width=90,
        height=60,
        boxes=boxes,
        labels=np.arange(4),
        areas=np.ones(4),
        crowd=np.array([False, True, False, False]),
        annotation_ids=(1, 2, 3, 4),
        segmentations=tuple(triangles),
    )
    # A part of the last two boxes is inside the crop, but no pixel of the last triangle.
    dataset = DetectionDataset([record], lambda image, _: image.cropped(0, 0, 60, 36))
    _, target, _ = dataset[0]
    assert target.labels.tolist() == [2]
    assert target.masks is not None
    expected = rasterised_by_coco(triangles[2], 60, 90)[:, :36]
    assert torch.equal(dense_masks(target.masks, (60, 36))[0], torch.from_numpy(expected))


def test_a_polygon_that_reaches_out_of_its_image_is_not_on_the_padding(tmp_path: Path) -> None:
    Image.new("RGB", (90, 60)).save(tmp_path / "a.png")
    corners = [(70, 20), (120, 20), (120, 40), (70, 40)]
    record = Record(
        image_id=1,
        path=tmp_path / "a.png",
        file_name="a.png",
        width=90,
        height=60,
        boxes=np.array([[70.0, 20, 50, 20]]),
        labels=np.zeros(1, np.int64),
        areas=np.ones(1),
        crowd=np.zeros(1, dtype=bool),
        annotation_ids=(1,),
        segmentations=(Polygons((np.array(corners, dtype=np.float64),)),),
    )
    half = transforms.LargeScaleJitter(90, 0.5, 0.5)  # 45 x 30 pixels in a square of 90
    for transform, left in ((half, 35), (lambda image, draw: half(image.flipped(), draw), 0)):
        _, target, _ = DetectionDataset([record], transform)[0]
        assert target.masks is not None
        expected = torch.zeros(90, 90, dtype=torch.bool)
        expected[10:20, left : left + 10] = True
        assert torch.equal(dense_masks(target.masks, (90, 90))[0], expected)


# datasets


def test_segmentations_are_read_only_with_masks(shapes: Path) -> None:
    records = load(shapes).splits["train"].records
    assert {record.segmentations for record in records} == {None}
    dataset = DetectionDataset(records, transforms.val_transform(48))
    assert dataset[0][1].masks is None
    for record in load(shapes, masks=True).splits["train"].records:
        assert record.segmentations is not None
        assert len(record.segmentations) == len(record.labels)


def test_images_without_a_trainable_object_can_be_removed(real_data: Path) -> None:
    split = load(real_data / "tiny_coco", masks=True).splits["train"]
    with_objects = split.with_objects()
    assert (len(split), len(with_objects)) == (50, 49)
    assert all(record.trainable.any() for record in with_objects.records)


@pytest.mark.parametrize("name", ["tiny_coco/train.json", "coco_eval/gt.json"])
def test_masks_of_real_data_are_rasterised_bit_for_bit_as_by_coco(
    name: str, real_data: Path
) -> None:
    file = real_data / name
    content = json.loads(file.read_text())
    recorded = {item["id"]: item["segmentation"] for item in content["annotations"]}
    split = read_split(file, file.parent / "images", "train", masks=True)
    compared = 0
    for record in split.records:
        size = (record.height, record.width)
        for key, segmentation in zip(record.annotation_ids, record.segmentations or ()):
            expected = reference.frPyObjects(recorded[key], *size)
            if isinstance(expected, list):
                expected = reference.merge(expected)
            assert segmentation.to_rle(*size) == {"size": list(size), "counts": expected["counts"]}
            mask = reference.decode(expected).astype(bool)
            assert np.array_equal(dense(segmentation.rasterise(IDENTITY, size), size), mask)
            compared += 1
    assert compared == len(recorded)


def test_masks_of_three_hundred_objects_of_a_real_image_take_little_memory(
    real_data: Path,
) -> None:
    """They take a twentieth of dense masks, although some objects are half as high as the image."""
    records = load(real_data / "tiny_coco", masks=True).splits["train"].records
    record = max(records, key=lambda record: len(record.labels))
    assert record.segmentations is not None
    rows = np.resize(np.flatnonzero(record.trainable), 300)
    crowded = Record(
        image_id=1,
        path=record.path,
        file_name="",
        width=record.width,
        height=record.height,
        boxes=record.boxes[rows],
        labels=record.labels[rows],
        areas=record.areas[rows],
        crowd=record.crowd[rows],
        annotation_ids=(None,) * 300,
        segmentations=tuple(record.segmentations[row] for row in rows),
    )
    image, target, _ = DetectionDataset([crowded], transforms.val_transform(800))[0]
    assert len(target) == 300
    assert target.masks is not None
    assert target.masks.pixels.nbytes + target.masks.windows.nbytes < 300 * image[0].nbytes / 20
