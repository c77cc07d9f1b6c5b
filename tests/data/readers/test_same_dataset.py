"""The same images through COCO, YOLO, Pascal VOC and Hugging Face datasets are the same dataset."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import pytest

from groupdetr.data.layouts import DatasetSplits, load

Coco = dict[str, Any]


def write_yolo(coco: dict[str, Coco], images: Path, out: Path, by_split: bool) -> Path:
    """Write six decimals, as most programs do. ``by_split``: train/images, not images/train."""
    names = [category["name"] for category in coco["train"]["categories"]]
    lines = ["path: .", f"names: {json.dumps(names)}", f"nc: {len(names)}"]
    for split, content in coco.items():
        folder = f"{split}/images" if by_split else f"images/{split}"
        lines.append(f"{split}: {folder}")
        numbers = {c["id"]: n for n, c in enumerate(content["categories"])}
        for image in content["images"]:
            rows = []
            for annotation in content["annotations"]:
                if annotation["image_id"] == image["id"]:
                    x, y, w, h = annotation["bbox"]
                    values = [
                        (x + w / 2) / image["width"],
                        (y + h / 2) / image["height"],
                        w / image["width"],
                        h / image["height"],
                    ]
                    numbers_text = " ".join(f"{value:.6f}" for value in values)
                    rows.append(f"{numbers[annotation['category_id']]} {numbers_text}")
            path = out / folder / image["file_name"]
            copy(images / image["file_name"], path)
            if rows:
                label = Path(str(path.with_suffix(".txt")).replace("/images/", "/labels/"))
                label.parent.mkdir(parents=True, exist_ok=True)
                label.write_text("\n".join(rows) + "\n", encoding="utf-8")
    (out / "data.yaml").write_text("\n".join(lines), encoding="utf-8")
    return out


def write_voc(coco: dict[str, Coco], images: Path, out: Path, flat: bool) -> Path:
    """Write the folders of VOC, or ``flat``: a folder for each split, as Roboflow does."""
    for split, content in coco.items():
        names = {c["id"]: c["name"] for c in content["categories"]}
        stems = []
        for image in content["images"]:
            name = Path(image["file_name"])
            stems.append(name.stem)
            objects = []
            for annotation in content["annotations"]:
                if annotation["image_id"] == image["id"]:
                    x, y, w, h = annotation["bbox"]
                    corners = {"xmin": x + 1, "ymin": y + 1, "xmax": x + w, "ymax": y + h}
                    box = "".join(f"<{tag}>{value:g}</{tag}>" for tag, value in corners.items())
                    text = escape(names[annotation["category_id"]])
                    difficult = annotation.get("iscrowd", 0)
                    objects.append(
                        f"<object><name>{text}</name><difficult>{difficult}</difficult>"
                        f"<bndbox>{box}</bndbox></object>"
                    )
            xml = out / (split if flat else "Annotations") / f"{name.stem}.xml"
            xml.parent.mkdir(parents=True, exist_ok=True)
            size = f"<width>{image['width']}</width><height>{image['height']}</height>"
            xml.write_text(
                f"<annotation><filename>{escape(name.name)}</filename><size>{size}</size>"
                f"{''.join(objects)}</annotation>",
                encoding="utf-8",
            )
            copy(images / name, out / (split if flat else "JPEGImages") / name.name)
        if not flat:
            (out / "ImageSets/Main").mkdir(parents=True, exist_ok=True)
            (out / f"ImageSets/Main/{split}.txt").write_text("\n".join(stems), encoding="utf-8")
    return out


def write_huggingface(coco: dict[str, Coco], images: Path, out: Path) -> Path:
    names = {c["id"]: n for n, c in enumerate(coco["train"]["categories"])}
    labels = "".join(
        f"            '{n}': {json.dumps(c['name'])}\n"
        for n, c in enumerate(coco["train"]["categories"])
    )
    out.mkdir(parents=True)
    (out / "README.md").write_text(
        "---\ndataset_info:\n  features:\n  - name: objects\n    sequence:\n"
        f"    - name: category\n      dtype:\n        class_label:\n          names:\n{labels}"
        "---\n# A dataset\n",
        encoding="utf-8",
    )
    for split, content in coco.items():
        lines = []
        for image in content["images"]:
            chosen = [a for a in content["annotations"] if a["image_id"] == image["id"]]
            objects = {
                "bbox": [a["bbox"] for a in chosen],
                "category": [names[a["category_id"]] for a in chosen],
            }
            lines.append(json.dumps({"file_name": image["file_name"], "objects": objects}))
            copy(images / image["file_name"], out / split / image["file_name"])
        (out / split / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return out


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy(source, target)


def write_parquet(coco: dict[str, Coco], images: Path, out: Path) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    numbers = {c["id"]: n for n, c in enumerate(coco["train"]["categories"])}
    names = [c["name"] for c in coco["train"]["categories"]]
    feature = {"names": names, "_type": "ClassLabel"}
    pose = {"names": ["sitting", "standing"], "_type": "ClassLabel"}
    info = {"info": {"features": {"objects": {"feature": {"pose": pose, "category": feature}}}}}
    (out / "data").mkdir(parents=True)
    for split, content in coco.items():
        rows = []
        for image in content["images"]:
            chosen = [a for a in content["annotations"] if a["image_id"] == image["id"]]
            encoded = (images / image["file_name"]).read_bytes()
            rows.append(
                {
                    "image": {"bytes": encoded, "path": image["file_name"]},
                    "objects": {
                        "bbox": [[float(x) for x in a["bbox"]] for a in chosen],
                        "category": [numbers[a["category_id"]] for a in chosen],
                    },
                }
            )
        table = pyarrow.Table.from_pylist(rows)
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
        name = {"val": "validation"}.get(split, split)
        parquet.write_table(table, out / f"data/{name}-00000-of-00001.parquet")
    return out


WRITERS: dict[str, Callable[[dict[str, Coco], Path, Path], Path]] = {
    "YOLO, images/train": lambda coco, images, out: write_yolo(coco, images, out, False),
    "YOLO, train/images": lambda coco, images, out: write_yolo(coco, images, out, True),
    "Pascal VOC": lambda coco, images, out: write_voc(coco, images, out, False),
    "Pascal VOC, flat": lambda coco, images, out: write_voc(coco, images, out, True),
    "Hugging Face": write_huggingface,
    "Parquet": write_parquet,
}


def assert_same_dataset(data: DatasetSplits, expected: DatasetSplits) -> None:
    """Names of classes and their order, images, sizes, boxes bit for bit."""
    assert [c.name for c in data.categories] == [c.name for c in expected.categories]
    assert data.splits.keys() == expected.splits.keys()
    for name, split in data.splits.items():
        others = expected.splits[name]
        assert len(split) == len(others)
        for record, other in zip(split.records, others.records):
            assert record.path.read_bytes() == other.path.read_bytes()
            assert (record.width, record.height) == (other.width, other.height)
            assert np.array_equal(record.boxes, other.boxes), (
                record.path,
                record.boxes,
                other.boxes,
            )
            assert np.array_equal(record.labels, other.labels)


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("name", ["bccd", "tiny_coco"])
def test_real_datasets_are_equal_in_all_formats(
    writer: str, name: str, real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "cache"))
    coco = {s: json.loads((real_data / name / f"{s}.json").read_text()) for s in ("train", "val")}
    for content in coco.values():
        content["categories"].sort(key=lambda category: category["name"])
        for number, category in enumerate(content["categories"]):
            category["new_id"] = number
        new_ids = {c["id"]: c["new_id"] for c in content["categories"]}
        for category in content["categories"]:
            category["id"] = category.pop("new_id")
        # What all formats can hold: images with the objects of classes in alphabetical order.
        content["annotations"] = [
            annotation | {"category_id": new_ids[annotation["category_id"]]}
            for annotation in content["annotations"]
            if not annotation.get("iscrowd")
        ]
        content["images"] = sorted(content["images"], key=lambda image: image["file_name"])[:20]
        kept = {image["id"] for image in content["images"]}
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
    if "VOC" in writer:  # it has no list of classes
        keep_used_classes(coco)
    reference = tmp_path / "coco"
    reference.mkdir()
    for split, content in coco.items():
        (reference / f"{split}.json").write_text(json.dumps(content))
    (reference / "images").symlink_to(real_data / name / "images")
    data = WRITERS[writer](coco, real_data / name / "images", tmp_path / "out")
    assert_same_dataset(load(data), load(reference))
    assert (tmp_path / "cache").exists() == (writer == "Parquet")


def keep_used_classes(coco: dict[str, Coco]) -> None:
    used = {a["category_id"] for content in coco.values() for a in content["annotations"]}
    for content in coco.values():
        content["categories"] = [c for c in content["categories"] if c["id"] in used]


def test_images_of_a_parquet_file_that_were_written_are_only_read(
    real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache may be that of another user, who alone can write into it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "cache"))
    folder = real_data / "tiny_coco"
    coco = {split: json.loads((folder / f"{split}.json").read_text()) for split in ("train", "val")}
    for content in coco.values():
        content["images"] = content["images"][:2]
    data = write_parquet(coco, folder / "images", tmp_path / "out")
    first = load(data)
    for path in (tmp_path / "cache").rglob("*"):
        os.utime(path, (0, 0))
    assert_same_dataset(load(data), first)
    assert all(path.stat().st_mtime == 0 for path in (tmp_path / "cache").rglob("*"))
