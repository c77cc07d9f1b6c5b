"""A synthetic nuScenes, written once, and helpers to break a copy of it."""

import json
import shutil

import numpy as np
import pytest

from groupdetr.data.nuscenes.samples import read_samples
from groupdetr.data.nuscenes.synthetic import VERSION, SyntheticNuScenesConfig, write
from groupdetr.data.nuscenes.synthetic_cameras import COLOURS, GROUND, SHADES, SKY
from groupdetr.data.nuscenes.tables import Tables

CONFIG = SyntheticNuScenesConfig(train_scenes=2, samples=3)
LONG_CONFIG = SyntheticNuScenesConfig(samples=8, width=64, height=36)


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nuscenes")
    write(CONFIG, folder)
    return folder


@pytest.fixture(scope="session")
def samples(root):
    return read_samples(Tables(root, VERSION), "train")


@pytest.fixture(scope="session")
def long_root(tmp_path_factory):
    """A set with small images, but scenes that are long enough for thirty earlier frames."""
    folder = tmp_path_factory.mktemp("long")
    write(LONG_CONFIG, folder)
    return folder


@pytest.fixture(scope="session")
def long_samples(long_root):
    return read_samples(Tables(long_root, VERSION), "train")


@pytest.fixture
def copy(root, tmp_path):
    """A copy of the set that a test may break. The tables are copied, the images are links."""
    for folder in ("samples", "sweeps", "maps"):
        (tmp_path / folder).symlink_to(root / folder)
    shutil.copytree(root / VERSION, tmp_path / VERSION)
    return tmp_path


@pytest.fixture
def edit(copy):
    """``edit("sample", change)`` changes the records of a table in place and returns the copy."""

    def edit_table(name, change):
        file = copy / VERSION / f"{name}.json"
        rows = json.loads(file.read_text())
        change(rows)
        file.write_text(json.dumps(rows))
        return copy

    return edit_table


SHADED_COLOURS = [("sky", np.array(SKY)), ("ground", np.array(GROUND))]
for class_name, class_colour in COLOURS.items():
    for class_shade in SHADES:
        SHADED_COLOURS.append((class_name, class_shade * np.array(class_colour)))


def class_of_pixel(pixel):
    """Return the name of the class whose colour is nearest to a pixel [3], or sky or ground."""
    distances = [np.abs(colour - pixel).sum() for _, colour in SHADED_COLOURS]
    return SHADED_COLOURS[int(np.argmin(distances))][0]


def corners_of(box):
    """Return the corners [8,3] of a box [9]."""
    x, y, z, width, length, height, yaw = box[:7]
    signs = np.array([(a, b, c) for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)]) / 2
    along = np.array([np.cos(yaw), np.sin(yaw), 0])
    across = np.array([-np.sin(yaw), np.cos(yaw), 0])
    offsets = signs * (length, width, height) @ np.stack([along, across, (0, 0, 1)])
    return np.array([x, y, z]) + offsets


def is_visible(camera, boxes, index, margin=1.15):
    """Return whether no other box is between a point [3] and the centre of a box.

    All other boxes are enlarged by ``margin``.
    """
    target = boxes[index, :3]
    for other, box in enumerate(boxes):
        if other != index and _intersects(camera, target, box, margin):
            return False
    return True


def _intersects(start, end, box, margin):
    """Return whether a segment intersects a box, by the slab method in the axes of the box."""
    cos, sin = np.cos(box[6]), np.sin(box[6])
    to_box = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
    origin = to_box @ (start - box[:3])
    direction = to_box @ (end - start)
    half_size = margin * box[[4, 3, 5]] / 2
    crossings = np.stack([(-half_size - origin) / direction, (half_size - origin) / direction])
    return max(0, crossings.min(0).max()) < min(1, crossings.max(0).min())
