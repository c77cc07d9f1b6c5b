"""Mosaic: boxes and masks stay on their objects, and are cut off where their image is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from groupdetr.data.dataset import DetectionDataset, SampleIndex
from groupdetr.data.mosaic import Mosaic
from groupdetr.data.records import Record
from groupdetr.data.segmentations import Polygons, RunLengths, Segmentation
from groupdetr.data.transforms import Transform, flip_transform, val_transform
from groupdetr.structures.detections import encode_masks
from groupdetr.tasks.detection2d.task import Augmentation

SIDE = 96


def records(folder: Path, masks: bool = True) -> list[Record]:
    """Four images of different sizes, with a white rectangle each on a colour of their own."""
    rng = np.random.default_rng(0)
    created = []
    for number, (width, height) in enumerate([(90, 60), (60, 90), (64, 64), (120, 40)]):
        pixels = np.full((height, width, 3), (0, 30 * number, 90), dtype=np.uint8)
        x, y = int(rng.integers(2, width - 26)), int(rng.integers(2, height - 22))
        pixels[y : y + 20, x : x + 24] = 255
        path = folder / f"{number}.png"
        Image.fromarray(pixels).save(path)
        corners = np.array([[x, y], [x + 24, y], [x + 24, y + 20], [x, y + 20]], dtype=np.float64)
        segmentation: Segmentation = Polygons((corners,))
        if number % 2:
            (rle,) = encode_masks(pixels[None, :, :, 0] == 255)
            segmentation = RunLengths(rle["counts"], (height, width))
        created.append(
            Record(
                image_id=number,
                path=path,
                file_name=path.name,
                width=width,
                height=height,
                boxes=np.array([[x, y, 24.0, 20.0]]),
                labels=np.array([number]),
                areas=np.ones(1),
                crowd=np.zeros(1, dtype=bool),
                annotation_ids=(number,),
                segmentations=(segmentation,) if masks else None,
            )
        )
    return created


def dataset(folder: Path, transform: Transform, **options: object) -> DetectionDataset:
    return DetectionDataset(records(folder), transform, mosaic=Mosaic(SIDE), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("create", [val_transform, flip_transform])
def test_boxes_and_masks_stay_on_their_objects(create: object, tmp_path: Path) -> None:
    """All that is white are objects, and of small leftovers only a few pixels are no object."""
    images = dataset(tmp_path, create(SIDE))  # type: ignore[operator]
    seen = 0
    for epoch in range(40):
        image, target, _ = images[SampleIndex(epoch, 0)]
        if tuple(image.shape) == (3, SIDE, SIDE * 3 // 2):
            continue  # This one is not a mosaic.
        assert tuple(image.shape) == (3, SIDE, SIDE)
        assert target.masks is not None
        white = (image > 200).all(0).numpy()
        of_objects = np.zeros_like(white)
        for box, (left, top, width, height), start in zip(
            target.boxes.numpy() * SIDE, target.masks.windows.tolist(), target.masks.starts.tolist()
        ):
            area = width * height
            mask = target.masks.pixels[start : start + area].numpy().reshape(height, width)
            of_objects[top : top + height, left : left + width] |= mask.astype(bool)
            corners = [*(box[:2] - box[2:] / 2), *(box[:2] + box[2:] / 2)]
            expected = [left, top, left + width, top + height]
            np.testing.assert_allclose(corners, expected, atol=1.5)
            seen += 1
        # Edges are blurred by resizing, and objects of which less than a tenth is left are dropped.
        assert (of_objects & ~(image > 120).all(0).numpy()).mean() < 0.01
        assert (white & ~of_objects).mean() < 0.01
    assert seen > 30


def test_half_of_the_images_are_mosaics_and_they_depend_on_the_sample_alone(
    tmp_path: Path,
) -> None:
    images = dataset(tmp_path, val_transform(SIDE), seed=3)
    again = dataset(tmp_path, val_transform(SIDE), seed=3, cache_bytes=1 << 20)
    before = torch.get_rng_state()
    samples = [images[SampleIndex(epoch, 3)] for epoch in range(200)]
    mosaics = [image.shape[1] == image.shape[2] for image, _, _ in samples]
    assert 70 < sum(mosaics) < 130
    for epoch in (7, 100, 3):
        image, target, index = again[SampleIndex(epoch, 3)]
        assert index == 3
        assert torch.equal(image, samples[epoch][0])
        assert torch.equal(target.labels, samples[epoch][1].labels)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_four_images_touch_one_point_and_the_rest_is_grey(tmp_path: Path) -> None:
    images = dataset(tmp_path, val_transform(SIDE))
    mosaic = Mosaic(SIDE).compose([images.sample(index) for index in range(4)], (40, 60), 0.5)
    pixels = mosaic.image.image
    blue = pixels[2, 59:61, 39:41]
    assert (blue != 128).all()  # the pixels around the point
    green = pixels[1, [58, 58, 61, 61], [38, 41, 38, 41]]
    assert [round(value / 30) for value in green.tolist()] == [0, 1, 2, 3]
    assert (pixels[:, 0, 95] == 128).all()  # no image is as large
    assert mosaic.image.boxes.min() >= 0
    assert mosaic.image.boxes.max() <= SIDE


def test_little_leftovers_are_dropped(tmp_path: Path) -> None:
    """Of an object of 24 x 20 pixels, a strip of 2 pixels is 8 %, and one of 3 pixels is 12 %."""
    record = records(tmp_path, masks=False)[0]
    images = DetectionDataset([record], val_transform(SIDE))
    for shift, kept in ((2, 0), (3, 1)):
        sample = images.sample(0)
        # The window of the first image ends at the point, and its left part is outside.
        sample.image.boxes[:] = [30 - 24 + shift, 10, 30 + shift, 30]
        scale = 90 / SIDE
        mosaic = Mosaic(SIDE).compose([sample] * 4, (60, 60), scale)
        in_first = mosaic.image.boxes[:, 2] <= 60
        in_first &= mosaic.image.boxes[:, 3] <= 60
        assert in_first.sum() == kept


@pytest.mark.parametrize("name", ["detr+mosaic", "lsj+mosaic+photometric", "flip+mosaic"])
def test_a_mosaic_goes_along_with_the_other_augmentations(name: str, tmp_path: Path) -> None:
    images = Augmentation.named(name).dataset(records(tmp_path), 64)
    for epoch in range(20):
        image, target, _ = images[SampleIndex(epoch, 1)]
        assert image.dtype == torch.uint8
        assert target.masks is not None
        assert len(target.masks) == len(target.labels) == len(target.boxes)
        assert ((target.boxes >= 0) & (target.boxes <= 1)).all()
