"""The fast way to read a COCO file gives what the explaining way gives, whatever the file holds."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from groupdetr.data import coco, json_pieces
from groupdetr.data.findings import Findings
from groupdetr.data.json_pieces import NotPlainError
from groupdetr.data.records import CocoSplit, Record
from groupdetr.data.segmentations import Polygons
from tests.data.conftest import Sample
from tests.data.fuzzing import FUZZ
from tests.data.test_check import all_paths, mutate
from tests.data.test_mask_rules import with_masks


def parsed(root: Path, masks: bool, plain: bool) -> tuple[CocoSplit, Findings] | None:
    """Return what one of the two ways makes of the train file. None if the fast one leaves it."""
    file, images = root / "train.json", root / "images"
    if plain:
        try:
            return coco._parse_plain(file.read_bytes(), file, images, "train", masks)
        except NotPlainError:
            return None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coco, "read_plain", _leave)
        return coco.parse(file, images, "train", masks)


def _leave(*_: object) -> None:
    raise NotPlainError("left to the other way")


def contents(record: Record) -> list[object]:
    """Return all fields of a record, with arrays as bytes, so that every bit is compared."""
    fields: list[object] = []
    for name, value in vars(record).items():
        if name == "segmentations":
            continue
        is_array = isinstance(value, np.ndarray)
        fields.append((value.dtype.str, value.shape, value.tobytes()) if is_array else value)
    for item in record.segmentations or ():
        if isinstance(item, Polygons):
            fields.append([(part.shape, part.tobytes()) for part in item.parts])
        else:
            fields.append((item.counts, item.size))
    return fields


def assert_same(root: Path, masks: bool = False) -> bool:
    """Compare both ways. Returns whether the fast one was taken."""
    fast = parsed(root, masks, plain=True)
    if fast is None:
        return False
    (split, findings), (expected, expected_findings) = fast, parsed(root, masks, plain=False)
    assert list(findings) == list(expected_findings)
    assert split.categories == expected.categories
    assert list(map(contents, split.records)) == list(map(contents, expected.records))
    types = [[type(value) for value in vars(record).values()] for record in split.records]
    assert types == [[type(v) for v in vars(record).values()] for record in expected.records]
    return True


@settings(**FUZZ)
@given(data=st.data())
def test_random_changes_are_read_the_same_in_both_ways(data: Any, fuzzed: Sample) -> None:
    root = fuzzed.save()
    masks = data.draw(st.booleans())
    content = copy.deepcopy(with_masks(fuzzed).train)
    for _ in range(data.draw(st.integers(0, 2))):
        mutate(content, data)
        if not any(all_paths(content)):
            break
    (root / "train.json").write_text(json.dumps(content, indent=data.draw(st.none() | st.just(1))))
    event("fast" if assert_same(root, masks) else "left")


# Changes of a valid file that the fast way has to handle itself.
HANDLED: dict[str, Callable[[Any], object]] = {
    "nothing": lambda content: None,
    "a text with a colon": lambda content: content["images"][0].update(note="a: b, c:d"),
    "inner objects": lambda content: content["annotations"][1].update(attributes={"a": {"b": 1}}),
    "no area, no iscrowd": lambda content: [
        content["annotations"][0].pop(key) for key in ("area", "iscrowd")
    ],
    "another order": lambda content: content["annotations"].reverse(),
    "box outside": lambda content: content["annotations"][0].update(bbox=[70, -0.0, 5, 5]),
    "equal boxes": lambda content: content["annotations"].append(
        content["annotations"][3] | {"id": 9}
    ),
    "a crowd without mask": lambda content: content["annotations"][0].update(
        iscrowd=1, segmentation=[]
    ),
    "a short part": lambda content: content["annotations"][0]["segmentation"].insert(
        0, [1, 2, 3, 4]
    ),
    "negative zero": lambda content: content["annotations"][0]["segmentation"][0].__setitem__(
        0, -0.0
    ),
    "three decimals": lambda content: content["annotations"][0]["segmentation"][0].__setitem__(
        0, 10.125
    ),
    "a subfolder": lambda content: content["images"][0].update(file_name="images/0.jpg"),
    "an image outside Unicode": lambda content: content["images"][0].update(file_name="é😀.jpg"),
}


@pytest.mark.parametrize("change", HANDLED)
def test_files_without_faults_are_read_fast(
    change: str, sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With pieces of one byte, the list is cut after every annotation.
    monkeypatch.setattr(json_pieces, "_PIECE", 1)
    HANDLED[change](with_masks(sample).train)
    root = sample.save()
    assert assert_same(root, masks=False)
    assert assert_same(root, masks=True)


# Texts in the place of others, all of which are JSON to some reader.
LEFT = {
    "a key twice": ('"iscrowd": 0', '"iscrowd": 0, "id": 77'),
    "a key twice in the file": ('"categories"', '"categories": [], "categories"'),
    "the list twice": ('"categories"', '"annotations": [], "categories"'),
    "spaces and colons": ('"iscrowd": 0', '"iscrowd" : 0, "note": "b:"'),
    "not a number": ('"area": 600', '"area": NaN'),
    "a number of 30 digits": ('"area": 600, ', '"area": 600, "id": ' + "9" * 30 + ", "),
    "half of a character": ("0.jpg", "\\ud800.jpg"),
    "a comma too much": ("[10, 5, 20, 30]", "[10, 5, 20, 30,]"),
    "the end is missing": ('"name": "dog"}]}', '"name": "dog"}]'),
    "a text that looks like a key": ('"width"', '"note": "a\\": b", "width"'),
    "an id of text": ('"image_id": 0', '"image_id": "0"'),
    "an id of 0": ('"id": 1, "image_id"', '"id": 0, "image_id"'),
    "a list of numbers": ('"annotations": [', '"annotations": [1, '),
    "the list is deeper": ('"annotations": [', '"x": {"annotations": ['),
}


def test_files_to_explain_are_left_to_the_other_way(sample: Sample) -> None:
    root = sample.save()
    text = (root / "train.json").read_text()
    for change, (before, after) in LEFT.items():
        assert before in text, change
        (root / "train.json").write_text(text.replace(before, after, 1))
        assert parsed(root, False, plain=True) is None, change


def test_what_is_no_number_in_a_box_or_a_polygon_is_left_to_the_other_way(sample: Sample) -> None:
    polygon = with_masks(sample).train["annotations"][0]["segmentation"][0]
    for numbers, masks in ((sample.box, False), (polygon, True)):
        former = numbers[1]
        for value in (False, True, None, "1", [1], {}):
            numbers[1] = value
            assert parsed(sample.save(), masks, plain=True) is None, value
        numbers[1] = former
        assert parsed(sample.save(), masks, plain=True) is not None


def test_a_link_out_of_the_folder_is_reported_in_both_ways(sample: Sample, tmp_path: Path) -> None:
    sample.image(1).replace(tmp_path / "elsewhere.jpg")
    os.symlink(tmp_path / "elsewhere.jpg", sample.image(1))
    root = sample.save()
    assert assert_same(root)
    fast = parsed(root, False, plain=True)
    assert fast is not None
    assert [finding.code for finding in fast[1]] == ["linked-outside"]
