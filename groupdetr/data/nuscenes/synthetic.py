"""A nuScenes drawn from a seed: all thirteen tables, splits, a map, and six cameras that see a town square.

Key frames come twice a second, pictures twelve times if asked for. Every camera has its own phase, and every record
its own ego pose. Lidar is recorded, since poses come with it, but has no files. The tables come last, so a set that
has them is whole.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from groupdetr.data.nuscenes.synthetic_records import KEY, Records, Scene
from groupdetr.data.nuscenes.synthetic_world import world
from groupdetr.data.nuscenes.tables import FIELDS, SPLITS_FILE, Row
from groupdetr.data.synthetic import jpeg, save
from groupdetr.errors import DataError

REVISION = 1  # raise it when a config draws something else than before
VERSION = "v1.0-synthetic"
START = 1_533_000_000_000_000  # microseconds: the first key frame
BETWEEN_SCENES = 60.0  # seconds
_RECORD = "synthetic.json"


@dataclass(frozen=True)
class SyntheticConfig:
    """What is drawn. A scene has ``samples`` key frames; without ``sweeps`` there are pictures of those only."""

    train_scenes: int = 1
    val_scenes: int = 1
    samples: int = 4
    width: int = 400
    height: int = 225
    sweeps: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        least = {
            "train_scenes": 1,
            "val_scenes": 1,
            "samples": 2,
            "width": 32,
            "height": 32,
            "seed": 0,
        }
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ValueError(f"{name} must be at least {low}, not {getattr(self, name)}")

    def splits(self) -> dict[str, list[str]]:
        """Names of the scenes."""
        names = [f"scene-{9001 + index}" for index in range(self.train_scenes + self.val_scenes)]
        return {"train": names[: self.train_scenes], "val": names[self.train_scenes :]}


def write(config: SyntheticConfig, root: Path | str, version: str = VERSION) -> None:
    """Writes ``<root>/<version>/*.json``, ``maps``, ``samples`` and ``sweeps``.

    A set that is there already, from this config, is kept; anything else in its place is a `DataError`.
    """
    root = Path(root)
    folder = root / version
    if _is_written(config, folder):
        return
    save(folder / _RECORD, _json(_info(config)))
    records = Records(config.seed)
    for scene in scenes(config):
        for name, pixels in scene.recorded(records):
            save(root / name, jpeg(pixels))
    save(root / records.rows["map"][0]["filename"], _png(np.full((64, 64), 255, dtype=np.uint8)))
    save(folder / SPLITS_FILE, _json(config.splits()))
    for table, rows in records.rows.items():
        save(folder / f"{table}.json", _json(rows))


def scenes(config: SyntheticConfig) -> Iterator[Scene]:
    """Those of all splits, one after the other."""
    names = [name for split in config.splits().values() for name in split]
    for index, name in enumerate(names):
        place = world(np.random.default_rng((config.seed, index)))
        start = START + round(index * (BETWEEN_SCENES + KEY * config.samples) * 1e6)
        yield Scene(
            name, place, start, config.samples, (config.width, config.height), config.sweeps
        )


def _is_written(config: SyntheticConfig, folder: Path) -> bool:
    tables = [(folder / f"{name}.json").exists() for name in FIELDS]
    record = folder / _RECORD
    found = record.read_bytes() if record.exists() else b""
    if (found or any(tables)) and found != _json(_info(config)):
        remedy = "choose another folder, or delete this one to draw it again"
        raise DataError("the folder holds another data set", str(folder), remedy)
    return bool(found) and all(tables)


def _info(config: SyntheticConfig) -> Row:
    return {"description": "groupdetr synthetic nuScenes", "revision": REVISION, **asdict(config)}


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _png(image: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png")
    return buffer.getvalue()
