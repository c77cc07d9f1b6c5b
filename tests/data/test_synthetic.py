"""The synthetic dataset is reproducible, its boxes and masks are exact, and its options work."""

import contextlib
import io
import json
import subprocess
import sys
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO

from groupdetr.data.synthetic import (
    MIN_VISIBLE,
    SyntheticConfig,
    SyntheticImage,
    class_names,
    generate_image,
    run_lengths,
    write,
)
from groupdetr.data.synthetic_shapes import SHAPES, random_coverage
from groupdetr.errors import DataError

EASY = SyntheticConfig(image_size=64, texture=0.0, occlusion=0.0)


def configs(**fixed):
    weights = st.tuples(*[st.floats(0.1, 1)] * 3)
    free = {
        "image_size": st.integers(32, 128),
        "num_classes": st.integers(1, len(SHAPES)),
        "min_objects": st.integers(0, 1),
        "max_objects": st.integers(1, 10),
        "texture": st.floats(0, 1),
        "occlusion": st.floats(0, 1),
        "sizes": weights,
        "seed": st.integers(0, 2**64),
    }
    return st.builds(SyntheticConfig, **(free | fixed))


def same(a: SyntheticImage, b: SyntheticImage) -> bool:
    names = ("image", "boxes", "labels", "masks")
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in names)


def generate_many(config, count=24):
    return [generate_image(config, "train", index) for index in range(count)]


def tight_box(mask):
    rows, columns = np.nonzero(mask)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


# reproducibility


def test_the_same_seed_generates_the_same_images_in_any_order():
    config = SyntheticConfig(seed=7)
    forwards = [generate_image(config, "train", index) for index in range(6)]
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    backwards = [
        generate_image(SyntheticConfig(seed=7), "train", index) for index in reversed(range(6))
    ]
    assert all(same(a, b) for a, b in zip(forwards, reversed(backwards)))
    assert np.array_equal(before, np.random.get_state()[1]), "the global generator is not used"


def test_another_index_split_or_seed_generates_another_image():
    config = SyntheticConfig()
    images = [
        generate_image(config, "train", 0),
        generate_image(config, "train", 1),
        generate_image(config, "val", 0),
    ]
    images.append(generate_image(replace(config, seed=1), "train", 0))
    assert not any(same(a, b) for i, a in enumerate(images) for b in images[:i])


def test_an_image_is_the_same_in_another_process():
    code = """if True:
        import zlib
        from groupdetr.data.synthetic import SyntheticConfig, generate_image
        print(zlib.crc32(generate_image(SyntheticConfig(), "train", 3).image))
    """
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert int(process.stdout) == zlib.crc32(generate_image(SyntheticConfig(), "train", 3).image)


# boxes and masks


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(config=configs(), index=st.integers(0, 10**6))
def test_every_config_generates_valid_objects(config, index):
    sample = generate_image(config, "train", index)
    side, count = config.image_size, len(sample.labels)
    assert config.min_objects <= count <= config.max_objects
    assert sample.image.shape == (side, side, 3)
    assert sample.image.dtype == np.uint8
    assert sample.boxes.shape == (count, 4)
    assert sample.boxes.dtype == np.float32
    assert sample.masks.shape == (count, side, side)
    assert sample.masks.dtype == bool
    assert sample.labels.dtype == np.int64
    assert ((sample.labels >= 0) & (sample.labels < config.num_classes)).all()
    assert sample.boxes.tolist() == [tight_box(mask) for mask in sample.masks]
    assert sample.masks.sum(0).max(initial=0) <= 1, (
        "masks are those of the visible parts, so no pixel belongs to two objects"
    )


def test_an_image_without_objects_has_empty_arrays():
    sample = generate_image(SyntheticConfig(min_objects=0, max_objects=0), "train", 0)
    assert sample.boxes.shape == (0, 4)
    assert sample.masks.shape == (0, 96, 96)
    assert len(sample.labels) == 0


def test_a_mask_covers_the_pixels_that_its_object_changed():
    """Without texture, the image differs from its smooth background where the mask is.

    This is independent of the code that generates the masks.
    """
    for sample in generate_many(replace(EASY, max_objects=1), 20):
        image = sample.image.astype(float)
        background = np.median(image[[0, 0, -1, -1], [0, -1, 0, -1]], axis=0)
        differs = np.abs(image - background).sum(-1) > 60  # more than the shadow and the gradient
        mask = sample.masks[0]
        assert (differs & mask).sum() > 0.9 * mask.sum()


def test_every_class_appears_and_has_a_name():
    config = SyntheticConfig(num_classes=len(SHAPES))
    labels = np.concatenate([sample.labels for sample in generate_many(config, 80)])
    assert sorted(set(labels.tolist())) == list(range(len(SHAPES)))
    assert len(set(class_names(config))) == len(SHAPES) >= 10
    assert class_names(SyntheticConfig(num_classes=2)) == class_names(config)[:2]


def test_a_class_can_be_recognised_by_shape_and_not_by_colour():
    """A classifier by mean colour is no better than chance; by outline it succeeds."""
    config = SyntheticConfig(num_classes=4, max_objects=1, texture=0.0, sizes=(0, 0, 1))
    images = generate_many(config, 240)
    labels = np.array([sample.labels[0] for sample in images])
    colours = np.stack([sample.image[sample.masks[0]].mean(0) for sample in images])
    outlines = np.stack([moments(sample.masks[0]) for sample in images])
    assert nearest_neighbour_accuracy(colours, labels) < 0.4
    assert nearest_neighbour_accuracy(outlines, labels) > 0.8


def test_no_shape_becomes_another_one_by_rotation_and_stretch():
    rng = np.random.default_rng(0)
    areas = [
        np.mean([(random_coverage(label, 40, rng) >= 128).sum() for _ in range(8)])
        for label in range(len(SHAPES))
    ]
    masks = np.zeros((len(SHAPES), 60, 100, 100))
    for label, area in enumerate(areas):
        for canvas in masks[label]:
            mask = random_coverage(label, 40 * np.sqrt(700 / area), rng) >= 128
            border = (100 - len(mask)) // 2
            canvas[border : border + len(mask), border : border + len(mask)] = mask
    flat = masks.reshape(len(SHAPES), 60, -1)
    overlap = np.einsum("asp,bp->abs", flat, flat[:, 0], optimize=True)
    iou = overlap / (flat.sum(-1)[:, None] + flat[:, 0].sum(-1)[None, :, None] - overlap)
    others = ~np.eye(len(SHAPES), dtype=bool)
    assert iou.max(-1)[others].max() < 0.92


def moments(mask):
    """Return numbers that describe how the pixels of a mask [H,W] spread around their centre.

    Rotation does not change them.
    """
    points = np.argwhere(mask) - np.argwhere(mask).mean(0)
    radius = np.linalg.norm(points, axis=1) / np.sqrt(mask.sum())
    return np.array(
        [(radius**power).mean() ** (1 / power) for power in (1, 2, 4, 8)] + [radius.max()]
    )


def nearest_neighbour_accuracy(features, labels):
    features = (features - features.mean(0)) / features.std(0)
    distance = np.linalg.norm(features[:, None] - features, axis=-1)
    np.fill_diagonal(distance, np.inf)
    return (labels[distance.argmin(1)] == labels).mean()


# options


def test_texture_makes_images_busier_and_does_not_change_boxes():
    busy = []
    for texture in (0.0, 0.5, 1.0):
        images = generate_many(SyntheticConfig(texture=texture))
        busy.append(
            np.mean(
                [np.abs(np.diff(sample.image.astype(float), axis=1)).mean() for sample in images]
            )
        )
        assert all(
            np.array_equal(a.masks, b.masks)
            for a, b in zip(images, generate_many(SyntheticConfig()))
        )
    assert busy[0] < 0.7 * busy[1] < 0.7 * busy[2]


def hidden_parts(occlusion, monkeypatch):
    """Return for every object the part of its pixels that others hide."""
    from groupdetr.data import synthetic

    hidden = []
    arrange = synthetic._arrange

    def measured_arrange(config, rng):
        objects, owner = arrange(config, rng)
        for index, item in enumerate(objects):
            visible = (owner == index + 1).sum()
            hidden.append(1 - visible / item.mask.sum())
        return objects, owner

    with monkeypatch.context() as patch:
        patch.setattr(synthetic, "_arrange", measured_arrange)
        generate_many(SyntheticConfig(occlusion=occlusion, texture=0.0))
    return np.array(hidden)


def test_occlusion_limits_the_hidden_part_and_more_occlusion_hides_more(monkeypatch):
    none, medium, full = (hidden_parts(occlusion, monkeypatch) for occlusion in (0.0, 0.4, 1.0))
    assert none.max() == 0
    assert medium.max() <= 0.4
    assert full.max() <= 1 - MIN_VISIBLE
    assert none.mean() < medium.mean() < full.mean()


def test_sizes_make_objects_smaller_or_larger():
    small, medium, large = (
        np.concatenate(
            [sample.boxes for sample in generate_many(replace(EASY, max_objects=1, sizes=sizes))]
        )
        for sizes in ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    )
    widths = [np.median(boxes[:, 2] - boxes[:, 0]) for boxes in (small, medium, large)]
    assert widths[0] < 0.75 * widths[1] < 0.75 * widths[2]


def test_an_invalid_config_is_an_error_that_names_the_option():
    for wrong in (
        {"image_size": 8},
        {"num_classes": 0},
        {"num_classes": len(SHAPES) + 1},
        {"min_objects": 7},
        {"min_objects": -1},
        {"texture": 1.5},
        {"texture": float("nan")},
        {"occlusion": -0.1},
        {"sizes": (0, 0, 0)},
        {"sizes": (1, 1)},
        {"sizes": (1, -1, 1)},
        {"seed": -1},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            SyntheticConfig(**wrong)


# files

COUNTS = {"train": 5, "val": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic")
    write(SyntheticConfig(), folder, COUNTS)
    return folder


@pytest.mark.parametrize("split", COUNTS)
def test_pycocotools_reads_the_generated_images_boxes_and_masks(folder, split):
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(folder / "annotations" / f"instances_{split}.json")
    assert coco.getImgIds() == list(range(1, COUNTS[split] + 1))
    assert coco.getAnnIds() == list(range(1, len(coco.anns) + 1))
    assert [category["name"] for category in coco.loadCats(range(1, 7))] == list(
        class_names(SyntheticConfig())
    )
    for index, image in enumerate(coco.loadImgs(coco.getImgIds())):
        sample = generate_image(SyntheticConfig(), split, index)
        pixels = np.asarray(Image.open(folder / "images" / split / image["file_name"]), dtype=float)
        assert np.abs(pixels - sample.image).mean() < 3, "JPEG changes the pixels by little"
        records = coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
        assert [record["category_id"] - 1 for record in records] == sample.labels.tolist()
        assert [record["area"] for record in records] == sample.masks.sum((1, 2)).tolist()
        for record, box, mask in zip(records, sample.boxes, sample.masks):
            x, y, width, height = record["bbox"]
            assert [x, y, x + width, y + height] == box.tolist()
            assert np.array_equal(coco.annToMask(record), mask)


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=6))
def test_run_lengths_decode_to_the_mask(rows):
    mask = np.array(rows)
    counts = run_lengths(mask)
    values = np.arange(len(counts)) % 2 == 1
    assert np.array_equal(np.repeat(values, counts).reshape(mask.shape, order="F"), mask)
    assert all(count > 0 for count in counts[1:])


def test_writing_the_same_again_changes_no_file(folder):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    calls = []
    write(SyntheticConfig(), folder, COUNTS, lambda *call: calls.append(call))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert calls == []


def test_another_config_or_count_is_an_error_with_a_remedy(folder):
    with pytest.raises(DataError, match="seed 0, not 1") as caught:
        write(SyntheticConfig(seed=1), folder, COUNTS)
    assert caught.value.where.endswith("instances_train.json")
    assert "folder" in caught.value.remedy
    with pytest.raises(DataError, match="count 5, not 6"):
        write(SyntheticConfig(), folder, {"train": 6})


@pytest.mark.parametrize("content", ["{", "[]", '{"info": 3}'])
def test_files_of_another_dataset_are_never_overwritten(tmp_path, content):
    path = tmp_path / "annotations" / "instances_train.json"
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(DataError):
        write(EASY, tmp_path, {"val": 1, "train": 1})
    assert path.read_text() == content
    assert not (tmp_path / "images").exists()


def test_an_interrupted_writing_is_completed(tmp_path):
    class Stop(Exception):
        pass

    def stop(split, done, _):
        if (split, done) == ("val", 2):
            raise Stop

    with pytest.raises(Stop):
        write(EASY, tmp_path, COUNTS, stop)
    assert not (tmp_path / "annotations" / "instances_val.json").exists()
    calls = []
    write(EASY, tmp_path, COUNTS, lambda *call: calls.append(call))
    assert calls == [("val", 1, 3), ("val", 2, 3), ("val", 3, 3)]
    (tmp_path / "images" / "train" / "000002.jpg").unlink()
    write(EASY, tmp_path, COUNTS)
    assert len(list((tmp_path / "images" / "train").iterdir())) == 5
    assert (
        json.loads((tmp_path / "annotations" / "instances_train.json").read_text())["info"]["count"]
        == 5
    )


def test_a_split_may_be_empty(tmp_path):
    for _ in range(2):
        write(EASY, tmp_path, {"val": 0})
    assert json.loads((tmp_path / "annotations" / "instances_val.json").read_text())["images"] == []
