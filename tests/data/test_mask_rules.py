"""With masks, a check finds all problems of segmentations that would break or mislead training."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools import mask as reference

from groupdetr.data.check import check
from groupdetr.data.coco import read_split
from groupdetr.data.findings import ERRORS
from groupdetr.data.image_transform import ImageTransform
from groupdetr.data.layouts import load
from groupdetr.data.mask_rules import are_normalised, box_polygon
from groupdetr.data.packed_segmentations import SegmentationPacker
from groupdetr.data.segmentations import Polygons, RunLengths
from groupdetr.errors import DataError
from tests.data.conftest import Sample
from tests.data.test_check import all_paths, codes, mutate


def polygon(x: float, y: float, w: float, h: float) -> list[float]:
    """Return a box as the coordinates of a polygon."""
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def compressed_rle(box: list[float]) -> dict:
    """Return a box as compressed run lengths, as text."""
    encoded = reference.merge(reference.frPyObjects([polygon(*box)], 48, 64))
    return {"size": [48, 64], "counts": encoded["counts"].decode()}


def uncompressed_rle(box: list[float]) -> dict:
    """Return a box as a list of run lengths."""
    flat = reference.decode(compressed_rle(box)).ravel(order="F")
    changes = np.flatnonzero(np.diff(flat, prepend=0))
    return {"size": [48, 64], "counts": np.diff(changes, prepend=0, append=flat.size).tolist()}


def with_masks(sample: Sample) -> Sample:
    """Give all annotations a segmentation, in the three formats in turn."""
    formats = (lambda box: [polygon(*box)], compressed_rle, uncompressed_rle)
    for content in (sample.train, sample.val):
        for number, item in enumerate(content["annotations"]):
            item["segmentation"] = formats[number % 3](item["bbox"])
    return sample


@pytest.fixture
def masked(sample):
    return with_masks(sample)


def test_masks_of_all_formats_are_valid_and_equal(masked):
    report = masked.check(masks=True)
    assert report.verdict == "ok", report.render()
    records = load(masked.root, masks=True).splits["train"].records
    assert [type(item) for record in records for item in record.segmentations] == [
        Polygons,
        RunLengths,
        RunLengths,
        Polygons,
    ]
    for record in records:
        for box, segmentation in zip(record.boxes, record.segmentations):
            window, pixels = segmentation.rasterise(ImageTransform(), (48, 64))
            assert window == tuple(box)
            assert pixels.all()


def test_segmentations_are_required_and_checked_only_with_masks(sample):
    assert sample.check().verdict == "ok"
    report = sample.check(masks=True)
    assert codes(report.errors).count("mask-missing") == 5
    with pytest.raises(DataError, match="no segmentation"):
        load(sample.root, masks=True)
    with_masks(sample).train["annotations"][0]["segmentation"] = "nonsense"
    assert sample.check().verdict == "ok"
    assert sample.check(masks=True).verdict == "refuse"


def set_segmentation(value):
    """Return a function that gives the first annotation of a sample this segmentation."""
    return lambda sample: sample.train["annotations"][0].update(segmentation=value)


BOX = [10, 5, 20, 30]
COUNTS = uncompressed_rle(BOX)["counts"]

# fault: (function that puts it into the sample, expected code, part of the expected record)
FAULTS = {
    "none": (
        lambda s: s.train["annotations"][0].pop("segmentation"),
        "mask-missing",
        "annotation 1",
    ),
    "null": (set_segmentation(None), "mask-missing", "annotation 1"),
    "an empty list": (set_segmentation([]), "mask-missing", "annotation 1"),
    "text": (set_segmentation("polygon"), "mask-malformed", "annotation 1"),
    "a list without parts": (set_segmentation(polygon(*BOX)), "mask-malformed", "annotation 1"),
    "an empty part": (set_segmentation([[]]), "mask-malformed", "annotation 1"),
    "points in pairs": (
        set_segmentation([[[1, 2], [3, 4], [5, 9]]]),
        "mask-malformed",
        "annotation 1",
    ),
    "an odd number of coordinates": (
        set_segmentation([polygon(*BOX)[:7]]),
        "mask-malformed",
        "annotation 1",
    ),
    "two points": (set_segmentation([[10, 5, 30, 35]]), "mask-malformed", "annotation 1"),
    "true in a polygon": (
        set_segmentation([[True, *polygon(*BOX)[1:]]]),
        "mask-malformed",
        "annotation 1",
    ),
    "NaN": (
        set_segmentation([[float("nan"), *polygon(*BOX)[1:]]]),
        "mask-far-outside",
        "annotation 1",
    ),
    "a number of 400 digits": (
        set_segmentation([[10**400, *polygon(*BOX)[1:]]]),
        "mask-far-outside",
        "annotation 1",
    ),
    "a corner two images away": (
        set_segmentation([[10, 5, 129, 5, 20, 30]]),
        "mask-far-outside",
        "annotation 1",
    ),
    "a part of two points": (
        set_segmentation([polygon(*BOX), [11, 6, 12, 7]]),
        "mask-short-part",
        "annotation 1",
    ),
    "fractions": (
        lambda s: [
            a.update(segmentation=[[0.1, 0.1, 0.4, 0.1, 0.4, 0.6]]) for a in s.train["annotations"]
        ],
        "masks-look-normalised",
        "",
    ),
    "fractions beside runs": (
        lambda s: [
            a.update(segmentation=[[0.1, 0.1, 0.4, 0.1, 0.4, 0.6]])
            for a in s.train["annotations"][::3]
        ],
        "masks-look-normalised",
        "",
    ),
    "an object without counts": (
        set_segmentation({"size": [48, 64]}),
        "mask-malformed",
        "annotation 1",
    ),
    "width and height exchanged": (
        set_segmentation({"size": [64, 48], "counts": COUNTS}),
        "mask-size",
        "annotation 1",
    ),
    "a run too long": (
        set_segmentation({"size": [48, 64], "counts": [*COUNTS[:-1], 9000]}),
        "mask-counts",
        "annotation 1",
    ),
    "a run missing": (
        set_segmentation({"size": [48, 64], "counts": COUNTS[:-1]}),
        "mask-counts",
        "annotation 1",
    ),
    "no compressed runs": (
        set_segmentation({"size": [48, 64], "counts": ""}),
        "mask-counts",
        "annotation 1",
    ),
    "a negative run": (
        set_segmentation({"size": [48, 64], "counts": [-1, 3073]}),
        "mask-malformed",
        "annotation 1",
    ),
    "a run of 400 digits": (
        set_segmentation({"size": [48, 64], "counts": [10**400]}),
        "mask-malformed",
        "annotation 1",
    ),
    "half a run": (
        set_segmentation({"size": [48, 64], "counts": [0.5, 3071.5]}),
        "mask-malformed",
        "annotation 1",
    ),
    "text that is no run": (
        set_segmentation({"size": [48, 64], "counts": "é"}),
        "mask-malformed",
        "annotation 1",
    ),
    "text that breaks off": (
        set_segmentation({"size": [48, 64], "counts": "ZZZ"}),
        "mask-malformed",
        "annotation 1",
    ),
    "a compressed run of 60 bits": (
        set_segmentation({"size": [48, 64], "counts": "o" * 9 + "1"}),
        "mask-malformed",
        "",
    ),
    "a negative compressed run": (
        set_segmentation({"size": [48, 64], "counts": "O"}),
        "mask-malformed",
        "annotation 1",
    ),
    "a polygon without area": (
        set_segmentation([[10, 5, 30, 35, 10, 5]]),
        "mask-empty",
        "annotation 1",
    ),
    "runs of nothing": (
        set_segmentation({"size": [48, 64], "counts": [3072]}),
        "mask-empty",
        "annotation 1",
    ),
    "a polygon elsewhere": (
        set_segmentation([polygon(40, 5, 20, 30)]),
        "mask-box-mismatch",
        "annotation 1",
    ),
    "a much smaller mask": (
        set_segmentation(uncompressed_rle([10, 5, 20, 12])),
        "mask-box-mismatch",
        "annotation 1",
    ),
    "a crowd without": (
        lambda s: s.train["annotations"][0].update(segmentation=[], iscrowd=1),
        "crowd-without-mask",
        "annotation 1",
    ),
}
# Other findings that a fault causes in the same dataset.
CONSEQUENCES = {
    "crowd-without-mask": {"crowds"},
    "masks-look-normalised": {"mask-box-mismatch", "mask-empty"},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_reported_with_its_record_and_without_unrelated_findings(fault, masked):
    add_fault, code, record = FAULTS[fault]
    add_fault(masked)
    report = masked.check(masks=True)
    findings = report.errors if code in ERRORS else report.warnings
    records = [finding.record for finding in findings if finding.code == code]
    assert any(record in other for other in records), report.render()
    others = set(codes(report.errors + report.warnings)) - {code}
    assert others <= CONSEQUENCES.get(code, set()), report.render()
    if code in ERRORS:
        with pytest.raises(DataError):
            load(masked.root, masks=True)


def test_a_mask_may_differ_from_its_box_by_two_pixels_and_a_tenth_of_the_side(masked):
    set_segmentation([polygon(10 + 3, 5, 16, 30 + 4)])(masked)
    assert masked.check(masks=True).verdict == "ok"


def test_one_polygon_on_the_first_pixel_does_not_look_normalised(masked):
    set_segmentation([[0.1, 0.1, 0.9, 0.1, 0.9, 0.9]])(masked)
    assert codes(masked.check(masks=True).errors) == []


def test_polygons_of_an_image_of_one_pixel_do_not_look_normalised():
    packer = SegmentationPacker()
    packer.add(box_polygon((0, 0, 1, 1)))
    corner = packer.packed()
    assert are_normalised(corner, np.array([[2.0, 2.0]]))
    assert not are_normalised(corner, np.array([[1.0, 1.0]]))


def test_a_part_of_two_points_is_ignored(masked):
    set_segmentation([[11, 6, 12, 7], polygon(*BOX)])(masked)
    masked.save()
    record = load(masked.root, masks=True).splits["train"].records[0]
    assert len(record.segmentations[0].parts) == 1


def test_a_crowd_without_a_segmentation_has_that_of_its_box(masked):
    masked.train["annotations"][0].update(iscrowd=1, segmentation=None)
    masked.save()
    record = load(masked.root, masks=True).splits["train"].records[0]
    assert reference.decode(record.segmentations[0].to_rle(48, 64)).sum() == 600
    of_objects = [item.to_rle(48, 64) for item in record.object_masks()]
    others = [item.to_rle(48, 64) for item in record.segmentations[1:]]
    assert of_objects == others, "a crowd is not trainable"


@pytest.fixture(scope="module")
def fuzzed_masks(tmp_path_factory):
    return with_masks(Sample(tmp_path_factory.mktemp("fuzz") / "sample"))


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_random_segmentations_are_refused_or_safe(data, fuzzed_masks):
    root = fuzzed_masks.save()
    content = copy.deepcopy(fuzzed_masks.train)
    segmentations = [item["segmentation"] for item in content["annotations"]]
    for _ in range(data.draw(st.integers(1, 3))):
        if any(all_paths(segmentations)):
            mutate(segmentations, data)
    for item, segmentation in zip(content["annotations"], segmentations):
        item["segmentation"] = segmentation
    (root / "train.json").write_text(json.dumps(content))
    if check(root, masks=True).verdict == "refuse":
        return
    for record in read_split(root / "train.json", root / "images", "train", masks=True).records:
        for segmentation in record.segmentations:
            mask = reference.decode(segmentation.to_rle(48, 64)).astype(bool)
            cropped = segmentation.rasterise(ImageTransform(), (48, 64))
            (left, top, width, height), pixels = cropped
            assert np.array_equal(mask[top : top + height, left : left + width], pixels)
            assert mask.sum() == pixels.sum()


def test_masks_of_real_data_agree_with_their_boxes(real_data):
    report = check(real_data / "tiny_coco", masks=True)
    assert not [code for code in codes(report.errors + report.warnings) if "mask" in code]
    assert (report.images, report.boxes) == (50, 465)
