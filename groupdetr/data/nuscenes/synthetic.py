"""A synthetic nuScenes generated from a seed: all thirteen tables, splits, a map and images.

Six cameras record a town square. There are two key frames per second, and optionally twelve images
per second of each camera. Every camera has its own phase, and every record its own ego pose. The
tables contain lidar records, because these have the poses of key frames, but no lidar files are
written. The tables are written last, so a dataset that has them is complete.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from groupdetr.data.nuscenes.synthetic_records import (
    KEY_FRAME_INTERVAL,
    SyntheticScene,
    SyntheticTables,
)
from groupdetr.data.nuscenes.synthetic_world import random_world
from groupdetr.data.nuscenes.tables import FIELDS, SPLITS_FILE, Row
from groupdetr.data.synthetic import jpeg, save
from groupdetr.errors import DataError

REVISION = 1  # increase it when the same config generates other data than before
VERSION = "v1.0-synthetic"
START_TIME = 1_533_000_000_000_000  # microseconds: the first key frame of the first scene
TIME_BETWEEN_SCENES = 60.0  # seconds
_CONFIG_FILE = "synthetic.json"
_MINIMA = {
    "train_scenes": 1,
    "val_scenes": 1,
    "samples": 2,
    "width": 32,
    "height": 32,
    "seed": 0,
}


@dataclass(frozen=True)
class SyntheticNuScenesConfig:
    """The size and the content of a synthetic dataset. `ValueError` if a value is too small."""

    train_scenes: int = 1
    val_scenes: int = 1
    samples: int = 4  # key frames of a scene
    width: int = 400  # of images, pixels
    height: int = 225
    sweeps: bool = True  # True if there are images between key frames
    seed: int = 0

    def __post_init__(self) -> None:
        for name, minimum in _MINIMA.items():
            value = getattr(self, name)
            if value < minimum:
                raise ValueError(f"{name} must be at least {minimum}, not {value}")

    def splits(self) -> dict[str, list[str]]:
        """Return the names of the scenes of each split."""
        names = [f"scene-{9001 + index}" for index in range(self.train_scenes + self.val_scenes)]
        return {"train": names[: self.train_scenes], "val": names[self.train_scenes :]}


def write(config: SyntheticNuScenesConfig, root: Path | str, version: str = VERSION) -> None:
    """Write ``<root>/<version>/*.json``, ``maps``, ``samples`` and ``sweeps``.

    If the folder already holds the dataset of this config, nothing is written. `DataError` if it
    holds other data.
    """
    root = Path(root)
    folder = root / version
    if _is_written(config, folder):
        return
    save(folder / _CONFIG_FILE, _to_json(_metadata(config)))
    tables = SyntheticTables(config.seed)
    for scene in generate_scenes(config):
        for name, pixels in scene.record(tables):
            save(root / name, jpeg(pixels))
    map_file = root / tables.rows["map"][0]["filename"]
    save(map_file, _to_png(np.full((64, 64), 255, dtype=np.uint8)))
    save(folder / SPLITS_FILE, _to_json(config.splits()))
    for name, rows in tables.rows.items():
        save(folder / f"{name}.json", _to_json(rows))


def generate_scenes(config: SyntheticNuScenesConfig) -> Iterator[SyntheticScene]:
    """Yield the scenes of all splits, one after the other."""
    splits = config.splits()
    names = splits["train"] + splits["val"]
    for index, name in enumerate(names):
        world = random_world(np.random.default_rng((config.seed, index)))
        duration = TIME_BETWEEN_SCENES + KEY_FRAME_INTERVAL * config.samples
        start_time = START_TIME + round(index * duration * 1e6)
        size = (config.width, config.height)
        yield SyntheticScene(name, world, start_time, config.samples, size, config.sweeps)


def _is_written(config: SyntheticNuScenesConfig, folder: Path) -> bool:
    """True if the complete dataset of this config exists. `DataError` if it is another dataset."""
    tables_exist = [(folder / f"{name}.json").exists() for name in FIELDS]
    config_file = folder / _CONFIG_FILE
    content = config_file.read_bytes() if config_file.exists() else b""
    if (content or any(tables_exist)) and content != _to_json(_metadata(config)):
        remedy = "choose another folder, or delete this one to generate it again"
        raise DataError("the folder holds another dataset", str(folder), remedy)
    return bool(content) and all(tables_exist)


def _metadata(config: SyntheticNuScenesConfig) -> Row:
    return {"description": "groupdetr synthetic nuScenes", "revision": REVISION, **asdict(config)}


def _to_json(value: object) -> bytes:
    return json.dumps(value).encode()


def _to_png(image: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png")
    return buffer.getvalue()
