"""Masks that would break or mislead training are named like everything else, where they are asked for."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as reference

from groupdetr.data.check import check
from groupdetr.data.coco import read_split
from groupdetr.data.findings import ERRORS
from groupdetr.data.formats import load
from groupdetr.data.image_transform import Placement
from groupdetr.data.mask_rules import as_polygon, normalised
from groupdetr.data.segmentations import Polygons, Runs
from groupdetr.errors import DataError
from tests.data.conftest import Sample
from tests.data.test_check import FUZZ, codes, mutate, places


def polygon(x: float, y: float, w: float, h: float) -> list[float]:
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def runs(box: list[float]) -> dict:
    """Compressed, as text."""
    encoded = reference.merge(reference.frPyObjects([polygon(*box)], 48, 64))
    return {"size": [48, 64], "counts": encoded["counts"].decode()}


def lengths(box: list[float]) -> dict:
    """Not compressed."""
    flat = reference.decode(runs(box)).ravel(order="F")
    starts = np.flatnonzero(np.diff(flat, prepend=0))
    return {"size": [48, 64], "counts": np.diff(starts, prepend=0, append=flat.size).tolist()}


def with_masks(sample: Sample) -> Sample:
    """Of all three forms."""
    forms = (lambda box: [polygon(*box)], runs, lengths)
    for content in (sample.train, sample.val):
        for number, item in enumerate(content["annotations"]):
            item["segmentation"] = forms[number % 3](item["bbox"])
    return sample


@pytest.fixture
def masked(sample):
    return with_masks(sample)


def test_masks_of_all_forms_are_sound_and_the_same(masked):
    report = masked.check(masks=True)
    assert report.verdict == "ok", report.render()
    records = load(masked.root, masks=True).splits["train"].records
    assert [type(shape) for record in records for shape in record.shapes] == [
        Polygons,
        Runs,
        Runs,
        Polygons,
    ]
    for record in records:
        for box, shape in zip(record.boxes, record.shapes):
            window, pixels = shape.drawn(Placement(), (48, 64))
            assert window == tuple(box)
            assert pixels.all()


def test_nothing_is_said_of_masks_unless_they_are_asked_for(masked):
    masked.train["annotations"][0]["segmentation"] = "nonsense"
    assert masked.check().verdict == "ok"
    assert masked.check(masks=True).verdict == "refuse"


def test_boxes_alone_are_enough_unless_masks_are_asked_for(sample):
    assert sample.check().verdict == "ok"
    report = sample.check(masks=True)
    assert codes(report.errors).count("mask-missing") == 5
    with pytest.raises(DataError, match="no segmentation"):
        load(sample.root, masks=True)


def segmentation(value):
    return lambda sample: sample.train["annotations"][0].update(segmentation=value)


BOX = [10, 5, 20, 30]
SOUND = lengths(BOX)["counts"]

# claim: (how the sample is spoiled, the code, part of the record that must be named)
SPOILED = {
    "none": (
        lambda s: s.train["annotations"][0].pop("segmentation"),
        "mask-missing",
        "annotation 1",
    ),
    "null": (segmentation(None), "mask-missing", "annotation 1"),
    "an empty list": (segmentation([]), "mask-missing", "annotation 1"),
    "text": (segmentation("polygon"), "mask-malformed", "annotation 1"),
    "a number": (segmentation(7), "mask-malformed", "annotation 1"),
    "a list without parts": (segmentation(polygon(*BOX)), "mask-malformed", "annotation 1"),
    "an empty part": (segmentation([[]]), "mask-malformed", "annotation 1"),
    "points in pairs": (segmentation([[[1, 2], [3, 4], [5, 9]]]), "mask-malformed", "annotation 1"),
    "an odd number of coordinates": (
        segmentation([polygon(*BOX)[:7]]),
        "mask-malformed",
        "annotation 1",
    ),
    "one odd part": (
        segmentation([polygon(*BOX), polygon(*BOX)[:7]]),
        "mask-malformed",
        "annotation 1",
    ),
    "two points": (segmentation([[10, 5, 30, 35]]), "mask-malformed", "annotation 1"),
    "text in a polygon": (
        segmentation([["10", *polygon(*BOX)[1:]]]),
        "mask-malformed",
        "annotation 1",
    ),
    "true in a polygon": (
        segmentation([[True, *polygon(*BOX)[1:]]]),
        "mask-malformed",
        "annotation 1",
    ),
    "NaN": (
        segmentation([[float("nan"), *polygon(*BOX)[1:]]]),
        "mask-out-of-reach",
        "annotation 1",
    ),
    "infinity": (
        segmentation([[float("inf"), *polygon(*BOX)[1:]]]),
        "mask-out-of-reach",
        "annotation 1",
    ),
    "a number of 400 digits": (
        segmentation([[10**400, *polygon(*BOX)[1:]]]),
        "mask-out-of-reach",
        "annotation 1",
    ),
    "a corner two pictures away": (
        segmentation([[10, 5, 129, 5, 20, 30]]),
        "mask-out-of-reach",
        "annotation 1",
    ),
    "a part of two points": (
        segmentation([polygon(*BOX), [11, 6, 12, 7]]),
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
        segmentation({"size": [48, 64]}),
        "mask-malformed",
        "annotation 1",
    ),
    "width and height exchanged": (
        segmentation({"size": [64, 48], "counts": SOUND}),
        "mask-size",
        "annotation 1",
    ),
    "no size": (segmentation({"counts": SOUND}), "mask-size", "annotation 1"),
    "a run too long": (
        segmentation({"size": [48, 64], "counts": [*SOUND[:-1], 9000]}),
        "mask-counts",
        "annotation 1",
    ),
    "a run missing": (
        segmentation({"size": [48, 64], "counts": SOUND[:-1]}),
        "mask-counts",
        "annotation 1",
    ),
    "no runs": (segmentation({"size": [48, 64], "counts": []}), "mask-counts", "annotation 1"),
    "no compressed runs": (
        segmentation({"size": [48, 64], "counts": ""}),
        "mask-counts",
        "annotation 1",
    ),
    "a negative run": (
        segmentation({"size": [48, 64], "counts": [-1, 3073]}),
        "mask-malformed",
        "annotation 1",
    ),
    "a run of 400 digits": (
        segmentation({"size": [48, 64], "counts": [10**400]}),
        "mask-malformed",
        "annotation 1",
    ),
    "half a run": (
        segmentation({"size": [48, 64], "counts": [0.5, 3071.5]}),
        "mask-malformed",
        "annotation 1",
    ),
    "a run of text": (
        segmentation({"size": [48, 64], "counts": ["3072"]}),
        "mask-malformed",
        "annotation 1",
    ),
    "text that is no run": (
        segmentation({"size": [48, 64], "counts": "é"}),
        "mask-malformed",
        "annotation 1",
    ),
    "text that breaks off": (
        segmentation({"size": [48, 64], "counts": "ZZZ"}),
        "mask-malformed",
        "annotation 1",
    ),
    "a compressed run of 60 bits": (
        segmentation({"size": [48, 64], "counts": "o" * 9 + "1"}),
        "mask-malformed",
        "",
    ),
    "a negative compressed run": (
        segmentation({"size": [48, 64], "counts": "O"}),
        "mask-malformed",
        "annotation 1",
    ),
    "a polygon without area": (
        segmentation([[10, 5, 30, 35, 10, 5]]),
        "mask-empty",
        "annotation 1",
    ),
    "runs of nothing": (
        segmentation({"size": [48, 64], "counts": [3072]}),
        "mask-empty",
        "annotation 1",
    ),
    "a polygon elsewhere": (
        segmentation([polygon(40, 5, 20, 30)]),
        "mask-beside-box",
        "annotation 1",
    ),
    "a much smaller mask": (
        segmentation(lengths([10, 5, 20, 12])),
        "mask-beside-box",
        "annotation 1",
    ),
    "a crowd without": (
        lambda s: s.train["annotations"][0].update(segmentation=[], iscrowd=1),
        "crowd-without-mask",
        "annotation 1",
    ),
}
ALSO = {
    "crowd-without-mask": {"crowds"},
    "masks-look-normalised": {"mask-beside-box", "mask-empty"},
}


@pytest.mark.parametrize("fault", SPOILED)
def test_a_fault_is_named_with_its_record_and_drags_no_others_behind_it(fault, masked):
    spoil, code, record = SPOILED[fault]
    spoil(masked)
    report = masked.check(masks=True)
    findings = report.errors if code in ERRORS else report.warnings
    assert any(record in finding.record for finding in findings if finding.code == code), (
        report.render()
    )
    others = set(codes(report.errors + report.warnings)) - {code}
    assert others <= ALSO.get(code, set()), report.render()
    if code in ERRORS:
        with pytest.raises(DataError):
            load(masked.root, masks=True)


def test_a_mask_may_be_two_pixels_and_a_tenth_of_its_box_off(masked):
    segmentation([polygon(10 + 3, 5, 16, 30 + 4)])(masked)
    assert masked.check(masks=True).verdict == "ok"


def test_a_polygon_on_the_first_pixel_is_none_in_fractions(masked):
    segmentation([[0.1, 0.1, 0.9, 0.1, 0.9, 0.9]])(masked)
    assert codes(masked.check(masks=True).errors) == []


def test_a_picture_of_one_pixel_has_polygons_in_pixels_that_look_like_fractions():
    corner = [as_polygon((0, 0, 1, 1))]
    assert normalised(corner, np.array([[2.0, 2.0]]))
    assert not normalised(corner, np.array([[1.0, 1.0]]))


def test_a_part_of_two_points_is_left_out(masked):
    segmentation([[11, 6, 12, 7], polygon(*BOX)])(masked)
    masked.save()
    assert len(load(masked.root, masks=True).splits["train"].records[0].shapes[0].parts) == 1


def test_a_crowd_without_a_mask_is_its_box(masked):
    masked.train["annotations"][0].update(iscrowd=1, segmentation=None)
    masked.save()
    record = load(masked.root, masks=True).splits["train"].records[0]
    assert reference.decode(record.shapes[0].runs(48, 64)).sum() == 600
    assert record.outlines() == record.shapes[1:], "and no object to learn"


@pytest.fixture(scope="module")
def fuzzed_masks(tmp_path_factory):
    return with_masks(Sample(tmp_path_factory.mktemp("fuzz") / "sample"))


@settings(max_examples=150, **FUZZ)
@given(data=st.data())
def test_no_segmentation_makes_check_raise_or_passes_and_misleads(data, fuzzed_masks):
    root = fuzzed_masks.save()
    content = copy.deepcopy(fuzzed_masks.train)
    shapes = [item["segmentation"] for item in content["annotations"]]
    for _ in range(data.draw(st.integers(1, 3))):
        if any(places(shapes)):
            mutate(shapes, data)
    for item, shape in zip(content["annotations"], shapes):
        item["segmentation"] = shape
    (root / "train.json").write_text(json.dumps(content))
    if check(root, masks=True).verdict == "refuse":
        return
    for record in read_split(root / "train.json", root / "images", "train", masks=True).records:
        for shape in record.shapes:
            mask = reference.decode(shape.runs(48, 64)).astype(bool)
            (left, top, width, height), pixels = shape.drawn(Placement(), (48, 64))
            assert np.array_equal(mask[top : top + height, left : left + width], pixels)
            assert mask.sum() == pixels.sum()


def test_masks_of_real_data_lie_in_their_boxes(real_data):
    report = check(real_data / "tiny_coco", masks=True)
    assert not [code for code in codes(report.errors + report.warnings) if "mask" in code]
    assert (report.images, report.boxes) == (50, 465)
