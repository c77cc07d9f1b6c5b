"""A check finds all problems of a dataset at once, and no content of a file makes it raise."""

import copy
import json
import os
import shutil

import pytest
from hypothesis import strategies as st

from groupdetr.data.check import check
from groupdetr.data.coco import read_split
from groupdetr.data.findings import ERRORS
from groupdetr.errors import DataError


def codes(findings):
    return [finding.code for finding in findings]


def test_a_valid_dataset_is_ok(sample):
    report = sample.check()
    assert report.verdict == "ok", report.render()
    assert (report.images, report.boxes) == (3, 4)
    report.raise_for_errors()


def annotation(sample, **changes):
    sample.train["annotations"][0] |= changes


def image(sample, **changes):
    sample.train["images"][0] |= changes


def category(sample, **changes):
    sample.train["categories"][0] |= changes


def drop(sample, kind, key):
    del sample.train[kind][0][key]


def all_boxes(sample, function):
    for item in sample.train["annotations"]:
        item["bbox"] = function(*item["bbox"])


def extra(sample, kind, **record):
    sample.train[kind].append(sample.train[kind][0] | record)


# fault: (function that puts it into the sample, expected code, part of the expected record)
FAULTS = {
    # boxes
    "negative width": (
        lambda s: annotation(s, bbox=[10, 5, -20, 30]),
        "box-negative",
        "annotation 1",
    ),
    "no area": (lambda s: annotation(s, bbox=[10, 5, 0, 30]), "box-no-area", "annotation 1"),
    "NaN": (
        lambda s: annotation(s, bbox=[10, 5, float("nan"), 30]),
        "box-not-finite",
        "annotation 1",
    ),
    "a number of 300 digits": (
        lambda s: annotation(s, bbox=[10, 5, 10**300, 30]),
        "box-not-finite",
        "annotation 1",
    ),
    "a number of 400 digits": (
        lambda s: annotation(s, bbox=[10, 5, 10**400, 30]),
        "box-not-finite",
        "annotation 1",
    ),
    "text in a box": (
        lambda s: annotation(s, bbox=["10", 5, 20, 30]),
        "box-malformed",
        "annotation 1",
    ),
    "true in a box": (
        lambda s: annotation(s, bbox=[True, 5, 20, 30]),
        "box-malformed",
        "annotation 1",
    ),
    "three numbers": (lambda s: annotation(s, bbox=[5, 20, 30]), "box-malformed", "annotation 1"),
    "no box": (lambda s: drop(s, "annotations", "bbox"), "box-malformed", "annotation 1"),
    "box outside": (lambda s: annotation(s, bbox=[70, 5, 20, 30]), "box-outside", "annotation 1"),
    "box partly outside": (
        lambda s: annotation(s, bbox=[50, 5, 20, 30]),
        "box-clamped",
        "annotation 1",
    ),
    "two corners": (
        lambda s: all_boxes(s, lambda x, y, w, h: [x + 30, y, x + 30 + w, y + h]),
        "boxes-look-xyxy",
        "",
    ),
    "fractions": (
        lambda s: all_boxes(s, lambda x, y, w, h: [x / 64, y / 48, w / 64, h / 48]),
        "boxes-look-normalised",
        "",
    ),
    "the same box twice": (
        lambda s: extra(s, "annotations", id=99),
        "duplicate-box",
        "annotation 99",
    ),
    # references and ids
    "unknown category": (
        lambda s: annotation(s, category_id=7),
        "unknown-category",
        "annotation 1",
    ),
    "category true, which is 1 in Python": (
        lambda s: annotation(s, category_id=True),
        "unknown-category",
        "annotation 1",
    ),
    "category as a list": (
        lambda s: annotation(s, category_id=[1]),
        "unknown-category",
        "annotation 1",
    ),
    "unknown image": (lambda s: annotation(s, image_id=77), "unknown-image", "annotation 1"),
    "no image id": (lambda s: drop(s, "annotations", "image_id"), "unknown-image", "annotation 1"),
    "duplicate image id": (lambda s: image(s, id=1), "duplicate-image-id", "image 1"),
    "image id true": (lambda s: image(s, id=True), "bad-image", "image number 1"),
    "image id of 100 bits": (lambda s: image(s, id=2**100), "bad-image", "image number 1"),
    "image id 0.0": (lambda s: image(s, id=0.0), "float-id", ""),
    "annotation id 0": (lambda s: annotation(s, id=0), "annotation-id-zero", "annotation 0"),
    "duplicate annotation id": (
        lambda s: annotation(s, id=2),
        "duplicate-annotation-id",
        "annotation 2",
    ),
    "annotation id null": (lambda s: annotation(s, id=None), "annotation-id", "annotation None"),
    "no annotation id": (
        lambda s: drop(s, "annotations", "id"),
        "annotation-id",
        "annotation of image 0",
    ),
    "annotation id as text": (lambda s: annotation(s, id="a1"), "text-id", ""),
    "annotation that is no object": (
        lambda s: s.train["annotations"].append(5),
        "bad-annotation",
        "annotation number 5",
    ),
    "image that is no object": (
        lambda s: s.train["images"].append([]),
        "bad-image",
        "image number 4",
    ),
    "category that is no object": (
        lambda s: s.train["categories"].append("cow"),
        "bad-category",
        "category number 3",
    ),
    "category without a name": (
        lambda s: drop(s, "categories", "name"),
        "bad-category",
        "category 1",
    ),
    "category without an id": (
        lambda s: drop(s, "categories", "id"),
        "bad-category",
        "category number 1",
    ),
    "duplicate category id": (lambda s: category(s, id=2), "duplicate-category-id", "category 2"),
    "class with few of many boxes": (
        lambda s: s.train["annotations"].extend(
            {"id": n, "image_id": 0, "category_id": 1, "bbox": [n % 40, n % 30, 5, 5 + n % 7]}
            for n in range(9, 130)
        ),
        "rare-class",
        "category 2",
    ),
    "two used categories of one name": (
        lambda s: category(s, name="dog"),
        "ambiguous-category-name",
        "categories 1, 2",
    ),
    "an unused category of the same name": (
        lambda s: extra(s, "categories", id=0),
        "duplicate-category-name",
        "categories 0, 1",
    ),
    "categories that differ between splits": (
        lambda s: category(s, name="cow"),
        "category-conflict",
        "category 1",
    ),
    "class without a box": (
        lambda s: extra(s, "categories", id=9, name="cow"),
        "class-without-boxes",
        "category 9",
    ),
    # other fields
    "crowd": (lambda s: annotation(s, iscrowd=1), "crowds", ""),
    "iscrowd 2": (lambda s: annotation(s, iscrowd=2), "bad-iscrowd", "annotation 1"),
    "negative area": (lambda s: annotation(s, area=-1), "bad-area", "annotation 1"),
    "width 0": (lambda s: image(s, width=0), "bad-size", "image 0"),
    "width NaN": (lambda s: image(s, width=float("nan")), "bad-size", "image 0"),
    "width of 400 digits": (lambda s: image(s, width=10**400), "bad-size", "image 0"),
    "an image without objects": (lambda s: s.train["annotations"].pop(), "empty-images", ""),
    "no objects in train": (lambda s: s.train["annotations"].clear(), "no-training-boxes", ""),
    "no objects in val": (lambda s: s.val["annotations"].clear(), "no-val-boxes", ""),
    "no images": (lambda s: s.train["images"].clear(), "no-images", ""),
    "no categories": (lambda s: s.train["categories"].clear(), "no-categories", ""),
    "no list of categories": (lambda s: s.train.pop("categories"), "json-not-coco", ""),
    "annotations as an object": (lambda s: s.train.update(annotations={}), "json-not-coco", ""),
    # file names
    "parent folder": (lambda s: image(s, file_name="a/../../x.jpg"), "path-outside", "image 0"),
    "network share": (
        lambda s: image(s, file_name="\\\\server\\x.jpg"),
        "path-outside",
        "image 0",
    ),
    "absolute path": (lambda s: image(s, file_name="/etc/passwd"), "path-outside", "image 0"),
    "drive letter": (lambda s: image(s, file_name="C:\\x.jpg"), "path-outside", "image 0"),
    "NUL": (lambda s: image(s, file_name="a\0.jpg"), "bad-file-name", "image 0"),
    "half a surrogate pair": (
        lambda s: image(s, file_name="\ud800.jpg"),
        "bad-file-name",
        "image 0",
    ),
    "a name of 5000 characters": (
        lambda s: image(s, file_name="a" * 5000),
        "bad-file-name",
        "image 0",
    ),
    "empty name": (lambda s: image(s, file_name=""), "bad-file-name", "image 0"),
    "no name": (lambda s: drop(s, "images", "file_name"), "bad-image", "image 0"),
    "name as a number": (lambda s: image(s, file_name=7), "bad-image", "image 0"),
    "the same file twice": (
        lambda s: image(s, file_name="./1.jpg"),
        "duplicate-file-name",
        "image 1",
    ),
    "backslashes": (lambda s: image(s, file_name=".\\0.jpg"), "backslash", "image 0"),
    # image files
    "missing": (lambda s: s.image().unlink(), "missing-file", "image 0"),
    "other case": (
        lambda s: s.image().rename(s.root / "images" / "0.JPG"),
        "file-case",
        "image 0",
    ),
    "not an image": (lambda s: s.image().write_text("<html>"), "not-an-image", "image 0"),
    "truncated": (
        lambda s: s.image().write_bytes(s.image().read_bytes()[:-200]),
        "truncated-image",
        "image 0",
    ),
    "other size": (lambda s: s.draw("0.jpg", 5, (32, 32)), "size-mismatch", "image 0"),
    "copy within a split": (
        lambda s: shutil.copy(s.image(0), s.image(1)),
        "duplicate-images",
        "image 1",
    ),
    "copy in another split": (
        lambda s: shutil.copy(s.image(0), s.image(3)),
        "shared-images",
        "image 3",
    ),
}


# Other findings that a fault causes in the same dataset.
CONSEQUENCES = {
    "boxes-look-xyxy": {"box-clamped"},
    "bad-iscrowd": {"crowds"},
    "bad-image": {"unknown-image"},
    "duplicate-image-id": {"unknown-image"},
    "bad-category": {"unknown-category", "category-conflict", "empty-images"},
    "duplicate-category-id": {"unknown-category", "category-conflict", "empty-images"},
    "ambiguous-category-name": {"category-conflict"},
    "duplicate-category-name": {"class-without-boxes"},
    "no-categories": {"no-training-boxes"},
    "no-images": {"no-training-boxes"},
    "json-not-coco": {"no-training-boxes"},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_reported_with_its_record_and_without_unrelated_findings(fault, sample):
    add_fault, code, record = FAULTS[fault]
    add_fault(sample)
    report = sample.check()
    findings = report.errors if code in ERRORS else report.warnings
    records = [finding.record for finding in findings if finding.code == code]
    assert any(record in other for other in records), report.render()
    others = set(codes(report.errors + report.warnings)) - {code}
    assert others <= CONSEQUENCES.get(code, set()), report.render()


def raw(content):
    return lambda path: path.write_bytes(content)


FILES = {
    "empty": (raw(b""), "not-json"),
    "cut": (raw(b'{"images": [{"id": 1'), "not-json"),
    "text": (raw(b"hello"), "not-json"),
    "bytes of no encoding": (raw(b'{"images": "\xff\xfe\xfd"}'), "not-json"),
    "a list": (raw(b"[1, 2]"), "json-not-coco"),
    "a configuration": (raw(b'{"model_type": 1}'), "json-not-coco"),
    "nested lists": (raw(b"[" * 200_000), "json-too-deep"),
    "an endless number": (raw(b'{"images": 1' + b"0" * 10_000 + b"}"), "not-json"),
    "a key twice": (raw(b'{"images": [], "images": []}'), "duplicate-key"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "missing-annotations"),
    "a fifo": (lambda path: (path.unlink(), os.mkfifo(path)), "missing-annotations"),
    "a broken link": (
        lambda path: (path.unlink(), path.symlink_to("nowhere")),
        "missing-annotations",
    ),
}


@pytest.mark.parametrize("fault", FILES)
def test_an_invalid_annotation_file_is_reported(fault, sample):
    replace_file, code = FILES[fault]
    sample.save()
    replace_file(sample.root / "train.json")
    report = check(sample.root)
    assert code in codes(report.errors)
    assert report.errors[0].file.endswith("train.json")
    with pytest.raises(DataError):
        read_split(sample.root / "train.json", sample.root / "images", "train")


def test_a_byte_order_mark_is_only_a_warning(sample):
    root = sample.save()
    for encoding in ("utf-8-sig", "utf-16"):
        (root / "train.json").write_bytes(json.dumps(sample.train).encode(encoding))
        assert codes(check(root).warnings) == ["json-encoding"]


def test_a_folder_of_unknown_layout_is_a_finding(tmp_path):
    assert codes(check(tmp_path).errors) == ["unknown-layout"]
    assert codes(check(tmp_path / "nowhere").errors) == ["missing-data"]


def test_check_goes_on_after_errors(sample):
    annotation(sample, bbox=[10, 5, -20, 30])
    sample.train["annotations"][1]["image_id"] = 99
    sample.image(0).unlink()
    sample.draw("1.jpg", 5, (32, 32))
    report = sample.check()
    expected = {"box-negative", "unknown-image", "missing-file", "size-mismatch"}
    assert expected <= set(codes(report.errors))
    with pytest.raises(DataError, match="more: groupdetr check"):
        report.raise_for_errors()


def test_the_remedy_checks_segmentations_if_the_training_does(sample):
    for record in sample.train["annotations"]:
        record.pop("segmentation", None)
    with pytest.raises(DataError, match=r"more: groupdetr check .* --masks$"):
        sample.check(masks=True).raise_for_errors()


def test_json_has_all_findings_and_the_console_shows_the_first_ones(sample):
    sample.train["annotations"] = [
        {"id": n + 1, "image_id": n % 3, "category_id": 1, "bbox": [5, 5, -1 - n, 5]}
        for n in range(40)
    ]
    report = sample.check()
    content = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert {"verdict", "errors", "warnings", "images", "boxes"} <= content.keys()
    assert content["verdict"] == "refuse"
    negative = [finding for finding in content["errors"] if finding["code"] == "box-negative"]
    assert len(negative) == 40
    assert set(negative[0]) == {"code", "file", "record", "what", "remedy"}
    assert "and 37 more" in report.render()
    assert report.render().count("bbox is") == 3


def test_statistics_count_trainable_objects(sample):
    annotation(sample, iscrowd=1)
    sample.train["annotations"][1]["bbox"] = [5, 5, 0, 5]
    report = sample.check()
    assert (report.images, report.boxes) == (3, 2)
    train = report.to_json()["splits"]["train"]
    assert train["classes"] == [
        {"id": 1, "name": "cat", "boxes": 1},
        {"id": 2, "name": "dog", "boxes": 1},
    ]
    assert train["objects_per_image"]["max"] == 1
    assert train["sizes"] == {"small": 2, "medium": 0, "large": 0}
    assert train["empty_images"] == 1


def test_more_objects_than_queries_are_reported(sample):
    assert codes(sample.check(num_queries=1).warnings) == ["objects-exceed-queries"]
    assert sample.check(num_queries=2).verdict == "ok"
    for n in range(200):
        sample.draw(f"extra{n}.png", 100 + n, (8, 8))
        extra(sample, "images", id=100 + n, file_name=f"extra{n}.png", width=8, height=8)
        extra(sample, "annotations", id=100 + n, image_id=100 + n, bbox=[1, 1, 5, 5])
    assert codes(sample.check(num_queries=1).warnings) == ["rare-class", "crowded-images"]


def test_without_decoding_the_headers_are_still_read(sample):
    sample.image(0).write_bytes(sample.image(0).read_bytes()[:-200])
    sample.draw("1.jpg", 5, (32, 32))
    assert codes(sample.check(decode=False).errors) == ["size-mismatch"]


def test_an_image_listed_in_two_splits_is_found_even_without_decoding(sample):
    sample.val["images"][0]["file_name"] = "0.jpg"
    assert codes(sample.check(decode=False).warnings) == ["shared-images"]


def test_control_characters_in_the_data_do_not_reach_the_console(sample):
    category(sample, name="\x1b[2J\ud800\n")
    image(sample, file_name="\x1b]0;owned\x07.jpg")
    extra(sample, "categories", id=9, name="\x1b[31m")
    text = sample.check().render()
    assert all(line.isprintable() for line in text.splitlines())
    text.encode()


def test_the_message_of_a_finding_is_short_for_any_record(sample):
    annotation(sample, bbox=[1, 2, 3, "y" * 100_000], iscrowd={"k" * 5000: 1})
    sample.train["annotations"][1]["bbox"] = [[["x" * 1000] * 100] * 50] * 20
    report = sample.check()
    assert "box-malformed" in codes(report.errors)
    assert max(len(finding.message) for finding in report.errors + report.warnings) < 1500


def test_a_dataset_of_one_image_has_no_boxes_to_evaluate_on(sample):
    del sample.train["images"][1:], sample.train["annotations"][2:]
    (sample.save() / "val.json").unlink()
    assert codes(check(sample.root).warnings) == ["no-val-boxes"]


def test_a_link_to_a_folder_above_does_not_stop_the_search(sample):
    (sample.root / "images" / "loop").symlink_to(sample.root)
    (sample.save() / "val.json").unlink()
    assert check(sample.root).verdict != "refuse"


# random content of the annotation file

ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.sampled_from(
        [0, 1, -1, 2**63, 10**30, 0.5, 1.0, 1e308, -1e308, float("nan"), float("inf"), 64, 48]
    )
    | st.sampled_from(
        ["", "1", "0.jpg", "../x", "\0", "\ud800", "/", "images", "\\", "C:", "NaN", "é"]
    ),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["id", "x"]), inner, max_size=2)
    ),
    max_leaves=5,
)


def all_paths(value, path=()):
    """Yield the path of every value inside a JSON value."""
    yield path
    items = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, inner in items:
        yield from all_paths(inner, (*path, key))


def mutate(content, data):
    """Replace, delete or repeat a random value inside a JSON value, in place."""
    path = data.draw(st.sampled_from([path for path in all_paths(content) if path]))
    for key in path[:-1]:
        content = content[key]
    action = data.draw(st.sampled_from(["replace", "replace", "delete", "repeat"]))
    if action == "replace":
        content[path[-1]] = data.draw(ANYTHING)
    elif action == "delete":
        del content[path[-1]]
    elif isinstance(content, list):
        content.append(copy.deepcopy(content[path[-1]]))


# real data


def test_real_datasets_have_their_known_counts_and_problems(real_data):
    bccd, tiny, raccoon = (check(real_data / name) for name in ("bccd", "tiny_coco", "raccoon"))
    for report, train, val, max_objects in (
        (bccd, (292, 3941), (72, 945), 30),
        (tiny, (50, 465), (50, 377), 36),
        (raccoon, (160, 173), (40, 44), 3),
    ):
        assert report.verdict == ("ok" if report is bccd else "warn"), report.render()
        assert (report.images, report.boxes) == train
        assert (report.splits["val"].images, report.splits["val"].boxes) == val
        assert report.splits["train"].objects_per_image["max"] == max_objects
    assert codes(raccoon.warnings) == ["duplicate-images"] * 4
    assert codes(tiny.warnings).count("class-without-boxes") == 31
    assert tiny.splits["train"].crowds == tiny.splits["val"].crowds == 5
    assert (tiny.splits["train"].empty_images, tiny.splits["val"].empty_images) == (1, 2)
