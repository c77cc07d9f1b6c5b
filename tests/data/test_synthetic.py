"""Claims about the synthetic data set: it repeats, its boxes and masks are exact, its knobs do what they say."""

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
    LEAST_VISIBLE,
    Drawing,
    SyntheticConfig,
    class_names,
    draw,
    run_lengths,
    write,
)
from groupdetr.data.synthetic_shapes import SHAPES, coverage
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


def same(a: Drawing, b: Drawing) -> bool:
    return all(
        np.array_equal(getattr(a, name), getattr(b, name))
        for name in ("image", "boxes", "labels", "masks")
    )


def drawings(config, count=24):
    return [draw(config, "train", index) for index in range(count)]


def tight(mask):
    rows, columns = np.nonzero(mask)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


# It repeats.


def test_the_same_seed_draws_the_same_pictures_whatever_the_order():
    config = SyntheticConfig(seed=7)
    forwards = [draw(config, "train", index) for index in range(6)]
    np.random.seed(1)
    backwards = [draw(SyntheticConfig(seed=7), "train", index) for index in reversed(range(6))]
    assert all(same(a, b) for a, b in zip(forwards, reversed(backwards)))


def test_another_index_split_or_seed_draws_another_picture():
    config = SyntheticConfig()
    pictures = [draw(config, "train", 0), draw(config, "train", 1), draw(config, "val", 0)]
    pictures.append(draw(replace(config, seed=1), "train", 0))
    assert not any(same(a, b) for i, a in enumerate(pictures) for b in pictures[:i])


def test_drawing_leaves_the_global_random_state_alone():
    before = np.random.get_state()[1].copy()
    drawings(SyntheticConfig(), 2)
    assert np.array_equal(before, np.random.get_state()[1])


def test_a_picture_is_the_same_in_another_process():
    code = """if True:
        import zlib
        from groupdetr.data.synthetic import SyntheticConfig, draw
        print(zlib.crc32(draw(SyntheticConfig(), "train", 3).image))
    """
    there = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert int(there) == zlib.crc32(draw(SyntheticConfig(), "train", 3).image)


# Boxes and masks are exact.


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(config=configs(), index=st.integers(0, 10**6))
def test_every_config_draws_valid_objects(config, index):
    drawing = draw(config, "train", index)
    side, count = config.image_size, len(drawing.labels)
    assert config.min_objects <= count <= config.max_objects
    assert drawing.image.shape == (side, side, 3)
    assert drawing.image.dtype == np.uint8
    assert drawing.boxes.shape == (count, 4)
    assert drawing.boxes.dtype == np.float32
    assert drawing.masks.shape == (count, side, side)
    assert drawing.masks.dtype == bool
    assert drawing.labels.dtype == np.int64
    assert ((drawing.labels >= 0) & (drawing.labels < config.num_classes)).all()
    assert drawing.boxes.tolist() == [tight(mask) for mask in drawing.masks]
    assert drawing.masks.sum(0).max(initial=0) <= 1, (
        "masks are of what is visible, so no pixel has two owners"
    )


def test_a_picture_without_objects_has_empty_arrays():
    drawing = draw(SyntheticConfig(min_objects=0, max_objects=0), "train", 0)
    assert drawing.boxes.shape == (0, 4)
    assert drawing.masks.shape == (0, 96, 96)
    assert len(drawing.labels) == 0


def test_a_mask_covers_the_pixels_that_its_object_changed():
    """Independent of the drawing code: without texture, the picture departs from its smooth paper where a mask is."""
    for drawing in drawings(replace(EASY, max_objects=1), 20):
        image = drawing.image.astype(float)
        paper = np.median(image[[0, 0, -1, -1], [0, -1, 0, -1]], axis=0)
        departs = np.abs(image - paper).sum(-1) > 60  # more than the shadow and the gradient
        mask = drawing.masks[0]
        assert (departs & mask).sum() > 0.9 * mask.sum()


def test_every_class_appears_and_classes_are_named():
    config = SyntheticConfig(num_classes=len(SHAPES))
    labels = np.concatenate([drawing.labels for drawing in drawings(config, 80)])
    assert sorted(set(labels.tolist())) == list(range(len(SHAPES)))
    assert len(set(class_names(config))) == len(SHAPES) >= 10
    assert class_names(SyntheticConfig(num_classes=2)) == class_names(config)[:2]


def test_a_class_is_its_shape_not_its_colour():
    """Guessing the class from the mean colour of an object is no better than chance; from its outline it is easy."""
    config = SyntheticConfig(num_classes=4, max_objects=1, texture=0.0, sizes=(0, 0, 1))
    pictures = drawings(config, 240)
    labels = np.array([drawing.labels[0] for drawing in pictures])
    colours = np.stack([drawing.image[drawing.masks[0]].mean(0) for drawing in pictures])
    outlines = np.stack([moments(drawing.masks[0]) for drawing in pictures])
    assert nearest_neighbour_accuracy(colours, labels) < 0.4
    assert nearest_neighbour_accuracy(outlines, labels) > 0.8


def test_no_shape_turned_and_stretched_is_another_shape():
    rng = np.random.default_rng(0)
    areas = [
        np.mean([(coverage(label, 40, rng) >= 128).sum() for _ in range(8)])
        for label in range(len(SHAPES))
    ]
    masks = np.zeros((len(SHAPES), 60, 100, 100))
    for label, area in enumerate(areas):
        for sample in masks[label]:
            one = coverage(label, 40 * np.sqrt(700 / area), rng) >= 128
            start = (100 - len(one)) // 2
            sample[start : start + len(one), start : start + len(one)] = one
    flat = masks.reshape(len(SHAPES), 60, -1)
    overlap = np.einsum("asp,bp->abs", flat, flat[:, 0], optimize=True)
    iou = overlap / (flat.sum(-1)[:, None] + flat[:, 0].sum(-1)[None, :, None] - overlap)
    others = ~np.eye(len(SHAPES), dtype=bool)
    assert iou.max(-1)[others].max() < 0.92


def moments(mask):
    """Of a mask [H,W], numbers that turning it does not change: how its pixels spread around its middle."""
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


# The knobs do what they say.


def test_texture_makes_pictures_busier_and_moves_no_box():
    busy = []
    for texture in (0.0, 0.5, 1.0):
        pictures = drawings(SyntheticConfig(texture=texture))
        busy.append(
            np.mean(
                [
                    np.abs(np.diff(drawing.image.astype(float), axis=1)).mean()
                    for drawing in pictures
                ]
            )
        )
        assert all(
            np.array_equal(a.masks, b.masks) for a, b in zip(pictures, drawings(SyntheticConfig()))
        )
    assert busy[0] < 0.7 * busy[1] < 0.7 * busy[2]


def hidden_shares(occlusion, monkeypatch):
    """Of every object, the share of its pixels that others hide."""
    from groupdetr.data import synthetic

    shares = []
    arrange = synthetic._arrange

    def spy(config, rng):
        pieces, owner = arrange(config, rng)
        shares.extend(
            1 - (owner == i + 1).sum() / piece.mask.sum() for i, piece in enumerate(pieces)
        )
        return pieces, owner

    with monkeypatch.context() as patch:
        patch.setattr(synthetic, "_arrange", spy)
        drawings(SyntheticConfig(occlusion=occlusion, texture=0.0))
    return np.array(shares)


def test_nothing_is_hidden_beyond_the_occlusion_and_more_occlusion_hides_more(monkeypatch):
    none, some, most = (hidden_shares(occlusion, monkeypatch) for occlusion in (0.0, 0.4, 1.0))
    assert none.max() == 0
    assert some.max() <= 0.4
    assert most.max() <= 1 - LEAST_VISIBLE
    assert none.mean() < some.mean() < most.mean()


def test_sizes_make_objects_smaller_or_larger():
    small, medium, large = (
        np.concatenate(
            [drawing.boxes for drawing in drawings(replace(EASY, max_objects=1, sizes=sizes))]
        )
        for sizes in ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    )
    widths = [np.median(boxes[:, 2] - boxes[:, 0]) for boxes in (small, medium, large)]
    assert widths[0] < 0.75 * widths[1] < 0.75 * widths[2]


@pytest.mark.parametrize(
    "wrong",
    [
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
    ],
)
def test_a_config_that_cannot_be_drawn_is_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SyntheticConfig(**wrong)


# Files.

COUNTS = {"train": 5, "val": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic")
    write(SyntheticConfig(), folder, COUNTS)
    return folder


@pytest.mark.parametrize("split", COUNTS)
def test_an_independent_reader_finds_the_drawn_pictures_boxes_and_masks(folder, split):
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(folder / "annotations" / f"instances_{split}.json")
    assert coco.getImgIds() == list(range(1, COUNTS[split] + 1))
    assert coco.getAnnIds() == list(range(1, len(coco.anns) + 1))
    assert [category["name"] for category in coco.loadCats(range(1, 7))] == list(
        class_names(SyntheticConfig())
    )
    for index, image in enumerate(coco.loadImgs(coco.getImgIds())):
        drawing = draw(SyntheticConfig(), split, index)
        pixels = np.asarray(Image.open(folder / "images" / split / image["file_name"]), dtype=float)
        assert np.abs(pixels - drawing.image).mean() < 3, "as good as the drawing, to the eye"
        records = coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
        assert [record["category_id"] - 1 for record in records] == drawing.labels.tolist()
        assert [record["area"] for record in records] == drawing.masks.sum((1, 2)).tolist()
        for record, box, mask in zip(records, drawing.boxes, drawing.masks):
            x, y, width, height = record["bbox"]
            assert [x, y, x + width, y + height] == box.tolist()
            assert np.array_equal(coco.annToMask(record), mask)


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=6))
def test_run_lengths_give_the_mask_back(rows):
    mask = np.array(rows)
    counts = run_lengths(mask)
    values = np.arange(len(counts)) % 2 == 1
    assert np.array_equal(np.repeat(values, counts).reshape(mask.shape, order="F"), mask)
    assert all(count > 0 for count in counts[1:])


def test_writing_the_same_again_touches_nothing(folder):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    calls = []
    write(SyntheticConfig(), folder, COUNTS, lambda *call: calls.append(call))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert calls == []


def test_another_config_or_count_is_refused_with_a_remedy(folder):
    with pytest.raises(DataError, match="seed 0, not 1") as caught:
        write(SyntheticConfig(seed=1), folder, COUNTS)
    assert caught.value.where.endswith("instances_train.json")
    assert "folder" in caught.value.remedy
    with pytest.raises(DataError, match="count 5, not 6"):
        write(SyntheticConfig(), folder, {"train": 6})


@pytest.mark.parametrize("content", ["{", "[]", '{"info": 3}', '{"images": []}'])
def test_a_data_set_of_other_origin_is_never_overwritten(tmp_path, content):
    path = tmp_path / "annotations" / "instances_train.json"
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(DataError):
        write(EASY, tmp_path, {"val": 1, "train": 1})
    assert path.read_text() == content
    assert not (tmp_path / "images").exists()


def test_what_an_interruption_left_is_completed(tmp_path):
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


def test_drawing_needs_no_torch():
    code = "import sys, groupdetr.data.synthetic; print('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip()
        == "False"
    )
