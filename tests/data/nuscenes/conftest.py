"""A synthetic nuScenes, written once, and ways to break a copy of it."""

import json
import shutil

import numpy as np
import pytest

from groupdetr.data.nuscenes.samples import read_samples
from groupdetr.data.nuscenes.synthetic import VERSION, SyntheticConfig, write
from groupdetr.data.nuscenes.synthetic_cameras import COLOURS, GROUND, SHADES, SKY
from groupdetr.data.nuscenes.tables import Tables

CONFIG = SyntheticConfig(train_scenes=2, samples=3)
LONG = SyntheticConfig(samples=8, width=64, height=36)


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
    """Small pictures, but long enough a scene for thirty earlier frames."""
    folder = tmp_path_factory.mktemp("long")
    write(LONG, folder)
    return folder


@pytest.fixture(scope="session")
def long_samples(long_root):
    return read_samples(Tables(long_root, VERSION), "train")


@pytest.fixture
def copy(root, tmp_path):
    """To be broken: the tables are copied, the pictures are the same."""
    for folder in ("samples", "sweeps", "maps"):
        (tmp_path / folder).symlink_to(root / folder)
    shutil.copytree(root / VERSION, tmp_path / VERSION)
    return tmp_path


@pytest.fixture
def edit(copy):
    """``edit("sample", change)``: changes the records of a table in place, then writes it."""

    def edited(name, change):
        file = copy / VERSION / f"{name}.json"
        rows = json.loads(file.read_text())
        change(rows)
        file.write_text(json.dumps(rows))
        return copy

    return edited


PAINTS = [(name, shade * np.array(colour)) for name, colour in COLOURS.items() for shade in SHADES]
PAINTS += [("sky", np.array(SKY)), ("ground", np.array(GROUND))]


def painted(pixel):
    """The name of the class that has the colour of a pixel [3]."""
    return min(PAINTS, key=lambda paint: np.abs(paint[1] - pixel).sum())[0]


def corners_of(box):
    """[8,3] of a box [9]."""
    x, y, z, width, length, height, yaw = box[:7]
    signs = np.array([(a, b, c) for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)]) / 2
    along, across = (
        np.array([np.cos(yaw), np.sin(yaw), 0]),
        np.array([-np.sin(yaw), np.cos(yaw), 0]),
    )
    offsets = signs * (length, width, height) @ np.stack([along, across, (0, 0, 1)])
    return np.array([x, y, z]) + offsets


def in_sight(eye, boxes, which, margin=1.15):
    """Whether nothing stands between a point [3] and the centre of a box, all boxes being a little larger."""
    target = boxes[which, :3]
    return not any(
        _hit(eye, target, box, margin) for place, box in enumerate(boxes) if place != which
    )


def _hit(eye, target, box, margin):
    """Whether the segment meets the box, by the slabs of the box's own axes."""
    turn = np.array(
        [[np.cos(box[6]), np.sin(box[6]), 0], [-np.sin(box[6]), np.cos(box[6]), 0], [0, 0, 1]]
    )
    start, way = turn @ (eye - box[:3]), turn @ (target - eye)
    half = margin * box[[4, 3, 5]] / 2
    ends = np.stack([(-half - start) / way, (half - start) / way])
    return max(0, ends.min(0).max()) < min(1, ends.max(0).min())
