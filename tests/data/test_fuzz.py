"""Random content of annotation files and images is refused with a message, or it is safe to use.

No content raises another error than `GroupDETRError`, takes long, or passes the check and fails
later.
"""

from __future__ import annotations

import copy
import io
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from PIL import Image, features

from groupdetr.data import transforms
from groupdetr.data.check import check
from groupdetr.data.dataset import DetectionDataset
from groupdetr.data.image_decoding import check_image, image_size, load_image, load_pixels
from groupdetr.data.layouts import load, load_split
from groupdetr.data.records import CocoSplit
from groupdetr.errors import GroupDETRError
from groupdetr.evaluation.coco import evaluate
from groupdetr.structures.detections import Detections
from tests.data.conftest import Sample
from tests.data.fuzzing import FUZZ
from tests.data.test_check import ANYTHING, all_paths, mutate
from tests.data.test_mask_rules import with_masks

LIMIT = 20.0  # seconds of the processor; an example takes hundredths of a second
MAX_PIXELS = 1 << 20  # of an image in these tests; random headers tell of huge images


@pytest.fixture(autouse=True, scope="module")
def _small_images() -> Iterator[None]:
    former = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    yield
    Image.MAX_IMAGE_PIXELS = former


@contextmanager
def within_limit() -> Iterator[None]:
    started = time.process_time()
    yield
    assert time.process_time() - started < LIMIT


# annotation files


@pytest.fixture(scope="module")
def fuzzed_masks(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """A sample with masks, a crowd, supercategories, and an image whose size is not recorded."""
    sample = with_masks(Sample(tmp_path_factory.mktemp("fuzz") / "sample"))
    sample.train["annotations"][1]["iscrowd"] = 1
    for name in ("width", "height"):
        del sample.train["images"][1][name]
    for content in (sample.train, sample.val):
        for category in content["categories"]:
            category["supercategory"] = "animal"
    sample.train["categories"].append({"id": 0, "name": "animal", "supercategory": "none"})
    return sample


def ground_truth(split: CocoSplit) -> list[Detections]:
    """Return the objects of each image as detections."""
    detections = []
    for record in split.records:
        corners, labels = record.trainable_objects()
        masks = record.object_masks()
        detections.append(
            Detections(
                scores=torch.ones(len(labels)),
                labels=torch.from_numpy(labels),
                boxes=torch.from_numpy(corners).float(),
                masks=masks and tuple(m.to_rle(record.height, record.width) for m in masks),
            )
        )
    return detections


def assert_usable(split: CocoSplit, masks: bool) -> None:
    """Assert that all samples of a split can be trained on, and that it can be evaluated."""
    create = transforms.lsj_transform if masks else transforms.detr_transform
    for record in split.records:
        boxes, _ = record.trainable_objects()
        assert np.isfinite(record.boxes).all()
        assert np.isfinite(record.areas).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert (boxes >= 0).all()
        assert (boxes[:, 2:] <= (record.width, record.height)).all()
        with Image.open(record.path) as image:
            assert image.size == (record.width, record.height)
    dataset = DetectionDataset(split.records, create(64))
    samples = [dataset[index] for index in range(len(dataset))]
    for _, target, _ in samples:
        assert torch.isfinite(target.boxes).all()
        assert ((target.labels >= 0) & (target.labels < len(split.categories))).all()
        assert masks == (target.masks is not None)
    if samples:
        assert len(dataset.collate(samples).indices) == len(samples)
    for kind in ("box", "mask") if masks else ("box",):
        ap = evaluate(split, ground_truth(split), kind).stats["AP"]
        assert np.isnan(ap) or 0 <= ap <= 1


def assert_refused_or_safe(root: Path, masks: bool) -> None:
    with within_limit():
        report = check(root, num_queries=1, masks=masks)
        json.dumps(report.to_json(), allow_nan=False)
        report.render().encode()
        event(report.verdict)
        try:
            data = load(root, masks=masks)
        except GroupDETRError:
            assert report.verdict == "refuse"
            return
        for name in ("train", "val"):
            # The categories are those of the split alone.
            assert len(load_split(root, None, name, masks)) == len(data.splits[name])
        if report.verdict != "refuse":
            for split in data.splits.values():
                assert_usable(split, masks)


@settings(**FUZZ)
@given(data=st.data(), masks=st.booleans(), name=st.sampled_from(["train", "val"]))
def test_random_changes_of_annotations_are_refused_or_safe(
    data: Any, masks: bool, name: str, fuzzed_masks: Sample
) -> None:
    root = fuzzed_masks.save()
    content = copy.deepcopy(getattr(fuzzed_masks, name))
    for _ in range(data.draw(st.integers(1, 5))):
        mutate(content, data)
        if not any(all_paths(content)):
            break
    (root / f"{name}.json").write_text(json.dumps(content))
    assert_refused_or_safe(root, masks)


NUMBER = st.floats(0, 50) | st.integers(0, 50) | st.floats(-70, 140) | st.sampled_from([1e9, 2**70])
POLYGON = st.lists(NUMBER, max_size=12)
COUNTS = st.lists(st.integers(-1, 4000), max_size=8) | st.text("0123PQ`ablno", max_size=12)
RLE = st.fixed_dictionaries(
    {"size": st.just([48, 64]) | st.lists(NUMBER, max_size=3), "counts": COUNTS}
)


CHANGE = st.fixed_dictionaries(
    {},
    optional={
        "bbox": st.lists(NUMBER, min_size=4, max_size=4),
        "segmentation": st.lists(POLYGON, max_size=3) | RLE | ANYTHING,
        "iscrowd": st.integers(0, 1),
    },
)


@settings(**FUZZ)
@given(changes=st.lists(CHANGE, min_size=1, max_size=3))
def test_random_boxes_and_segmentations_are_refused_or_safe(
    changes: list[dict[str, Any]], fuzzed_masks: Sample
) -> None:
    root = fuzzed_masks.save()
    content = copy.deepcopy(fuzzed_masks.train)
    for item, change in zip(content["annotations"], changes):
        item |= change
    (root / "train.json").write_text(json.dumps(content))
    assert_refused_or_safe(root, masks=True)
    assert_refused_or_safe(root, masks=False)


@settings(**FUZZ)
@given(
    edits=st.lists(st.tuples(st.floats(0, 0.9999), st.binary(max_size=3)), min_size=1, max_size=4),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
)
def test_random_bytes_of_an_annotation_file_are_refused_or_safe(
    edits: list[tuple[float, bytes]], encoding: str, fuzzed_masks: Sample
) -> None:
    root = fuzzed_masks.save()
    file = root / "train.json"
    raw = bytearray(file.read_text().encode(encoding))
    for position, value in edits:
        index = int(position * len(raw))
        raw[index : index + 1] = value
    file.write_bytes(bytes(raw))
    assert_refused_or_safe(root, masks=False)


# images


def originals() -> dict[str, bytes]:
    """Return small images in all formats, modes and compressions, by name."""
    pixels = np.random.default_rng(0).integers(0, 255, (24, 32, 4), dtype=np.uint8)
    rgb = Image.fromarray(pixels[..., :3])
    grey = Image.fromarray(pixels[..., 0])
    rgba = Image.fromarray(pixels)
    deep = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    floats = Image.fromarray(pixels[..., 0].astype(np.float32) / 255)
    exif = Image.Exif()
    exif[0x0112] = 6
    encoded: dict[str, bytes] = {}

    def add(name: str, image: Image.Image, kind: str, **options: Any) -> None:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        encoded[name] = buffer.getvalue()

    add("jpeg", rgb, "JPEG")
    add("jpeg, progressive", rgb, "JPEG", progressive=True)
    add("jpeg, grey", grey, "JPEG")
    add("jpeg, cmyk", rgb.convert("CMYK"), "JPEG")
    add("jpeg, rotated", rgb, "JPEG", exif=exif)
    add("mpo", rgb, "MPO", save_all=True, append_images=[rgb])
    add("png", rgb, "PNG")
    add("png, transparent", rgba, "PNG")
    add("png, palette", grey.convert("P"), "PNG", transparency=0)
    add("png, 1 bit", grey.convert("1"), "PNG")
    add("png, 16 bits", deep, "PNG")
    add("png, rotated", rgb, "PNG", exif=exif)
    add("gif", grey.convert("P"), "GIF", save_all=True, append_images=[grey.convert("P")])
    add("bmp", rgb, "BMP")
    add("dib", rgb, "DIB")
    add("tga", rgb, "TGA", compression="tga_rle")
    add("ppm", rgb, "PPM")
    add("pfm", floats, "PPM")
    for compression in ("raw", "tiff_lzw", "tiff_deflate", "jpeg", "packbits"):
        add(f"tiff, {compression}", rgb, "TIFF", compression=compression)
    add("tiff, 16 bits", deep, "TIFF")
    add("tiff, floats", floats, "TIFF")
    add("tiff, rotated", rgb, "TIFF", tiffinfo={0x0112: 6})
    add("webp", rgb, "WEBP")
    add("webp, transparent", rgba, "WEBP", lossless=True)
    add("webp, animated", rgb, "WEBP", save_all=True, append_images=[grey.convert("RGB")])
    if features.check("jpg_2000"):
        add("jpeg 2000", rgb, "JPEG2000")
    if features.check("avif"):
        add("avif", rgb, "AVIF")
    return encoded


ORIGINALS = originals()
EDIT = st.tuples(st.floats(0, 0.9999), st.integers(0, 4), st.binary(max_size=4))


def edited(raw: bytes, edits: list[tuple[float, int, bytes]], length: float) -> bytes:
    """Replace bytes at random places, and cut the end off."""
    content = bytearray(raw)
    for position, replaced, value in edits:
        # Most bytes of interest are in the header.
        index = int(position**3 * len(content))
        content[index : index + replaced] = value
    return bytes(content[: max(1, int(length * len(content)))])


def returns_or_refuses(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return the result of a function, None if it raised a `GroupDETRError`."""
    with within_limit():
        try:
            return function(*arguments)
        except GroupDETRError as error:
            where, remedy = error.where, error.remedy
    assert str(arguments[0]) in where
    assert remedy
    return None


@settings(**FUZZ)
@given(
    name=st.sampled_from(sorted(ORIGINALS)),
    edits=st.lists(EDIT, max_size=6),
    length=st.just(1.0) | st.floats(0, 1),
    recorded=st.booleans(),
)
def test_an_image_that_passes_the_check_can_be_loaded(
    name: str,
    edits: list[tuple[float, int, bytes]],
    length: float,
    recorded: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.getbasetemp() / "image"
    path.write_bytes(edited(ORIGINALS[name], edits, length))
    size = (32, 24) if recorded else returns_or_refuses(image_size, path) or (32, 24)
    passed = returns_or_refuses(check_image, path, size) is not None
    event(f"passed: {passed}")
    image = returns_or_refuses(load_image, path, size)
    pixels = returns_or_refuses(load_pixels, path, size)
    returns_or_refuses(load_image, path)
    if passed:
        assert image is not None
        assert image.size == size
        assert pixels is not None
        assert pixels.shape == (size[1], size[0], 3)
        assert np.array_equal(pixels, np.asarray(image))


@settings(**FUZZ)
@given(raw=st.binary(max_size=300), name=st.sampled_from(["", *sorted(ORIGINALS)]))
def test_random_bytes_are_no_image(
    raw: bytes, name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "image"
    path.write_bytes(ORIGINALS.get(name, b"")[:16] + raw)
    for function in (check_image, load_image, load_pixels):
        returns_or_refuses(function, path, (32, 24))
    returns_or_refuses(image_size, path)
