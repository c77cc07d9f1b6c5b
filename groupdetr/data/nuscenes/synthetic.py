"""A nuScenes drawn from a seed: all thirteen tables, splits, a map, and six cameras that see a town square.

Key frames come twice a second, pictures twelve times if asked for. Every camera has its own phase, and every record
its own ego pose. Lidar is recorded, since poses come with it, but has no files. The tables come last, so a set that
has them is whole.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from groupdetr.data.nuscenes.geometry import inverse, yaw
from groupdetr.data.nuscenes.names import ATTRIBUTES, CAMERAS, CATEGORIES, LIDAR
from groupdetr.data.nuscenes.synthetic_cameras import LIDAR_PLACE, LIDAR_ROTATION, MOUNTS, Solid, picture
from groupdetr.data.nuscenes.synthetic_world import Thing, World, world
from groupdetr.data.nuscenes.tables import FIELDS, SPLITS_FILE, Row
from groupdetr.data.records import Floats
from groupdetr.data.synthetic import jpeg, save
from groupdetr.errors import DataError

REVISION = 1  # raise it when a config draws something else than before
VERSION = "v1.0-synthetic"
START = 1_533_000_000_000_000  # microseconds: the first key frame
BETWEEN_SCENES = 60.0  # seconds
KEY = 0.5  # seconds between key frames
FRAMES = 6  # pictures of a camera from one key frame to the next, sweeps included
_RECORD = "synthetic.json"
_LEVELS = ("0-40", "40-60", "60-80", "80-100")  # per cent visible


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
        least = {"train_scenes": 1, "val_scenes": 1, "samples": 2, "width": 32, "height": 32, "seed": 0}
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
    names = [name for scenes in config.splits().values() for name in scenes]
    tables = _Writer(config, version)
    for index, name in enumerate(names):
        for path, content in tables.scene(index, name):
            save(root / path, content)
    save(root / tables.rows["map"][0]["filename"], _png(np.full((64, 64), 255, dtype=np.uint8)))
    save(folder / SPLITS_FILE, _json(config.splits()))
    for table in FIELDS:
        save(folder / f"{table}.json", _json(tables.rows[table]))


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


class _Writer:
    """The tables as they grow."""

    def __init__(self, config: SyntheticConfig, version: str) -> None:
        self.config, self.version = config, version
        self.rows: dict[str, list[Row]] = {name: [] for name in FIELDS}
        for name in CATEGORIES:
            self.add("category", name, name=name, description="")
        for name in ATTRIBUTES:
            self.add("attribute", name, name=name, description="")
        for number, level in enumerate(_LEVELS, 1):
            self.rows["visibility"].append({"token": str(number), "level": f"v{level}", "description": ""})
        for channel in (LIDAR, *CAMERAS):
            self.add("sensor", channel, channel=channel, modality="lidar" if channel == LIDAR else "camera")
        filename = f"maps/{self.token('map', 'square')}.png"
        self.add("map", "square", log_tokens=[], filename=filename, category="semantic_prior")

    def token(self, table: str, *parts: Any) -> str:
        """32 hexadecimal digits that depend on the seed and on what they stand for."""
        text = "/".join(map(str, (self.config.seed, table, *parts)))
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def add(self, table: str, *parts: Any, **fields: Any) -> str:
        token = self.token(table, *parts)
        self.rows[table].append({"token": token, **fields})
        return token

    def scene(self, index: int, name: str) -> Iterator[tuple[str, bytes]]:
        """Records a scene; gives the pictures as they are drawn, by file name."""
        place = world(np.random.default_rng((self.config.seed, index)))
        log = self.add("log", name, logfile=name, vehicle="square", date_captured="2018-07-31", location="square")
        self.rows["map"][0]["log_tokens"].append(log)
        samples = [self.token("sample", name, number) for number in range(self.config.samples)]
        self.add(
            "scene", name, name=name, description="a town square", log_token=log, nbr_samples=len(samples),
            first_sample_token=samples[0], last_sample_token=samples[-1],
        )  # fmt: skip
        clock = _Clock(START + round(index * (BETWEEN_SCENES + KEY * self.config.samples) * 1e6))
        for token, links, number in zip(samples, _chain(samples), range(len(samples))):
            scene = self.token("scene", name)
            self.rows["sample"].append(
                {"token": token, "timestamp": clock.stamp(number * KEY), "scene_token": scene, **links}
            )
        for number, thing in enumerate(place.things):
            self._instance(place, thing, (name, number), samples)
        self._lidar(place, name, samples, clock)
        for camera in CAMERAS:
            yield from self._camera(place, camera, (name, samples), clock)

    def _instance(self, place: World, thing: Thing, parts: tuple[str, int], samples: list[str]) -> None:
        tokens = [self.token("sample_annotation", *parts, number) for number in range(len(samples))]
        category = next(category for category, kind in CATEGORIES.items() if kind == thing.name)
        instance = self.add(
            "instance", *parts, category_token=self.token("category", category), nbr_annotations=len(tokens),
            first_annotation_token=tokens[0], last_annotation_token=tokens[-1],
        )  # fmt: skip
        attributes = [self.token("attribute", thing.attribute)] if thing.attribute else []
        for number, (token, links) in enumerate(zip(tokens, _chain(tokens))):
            pose = place.pose(thing, number * KEY)
            far = float(np.linalg.norm(pose[:2, 3] - place.vehicle(number * KEY)[:2, 3]))
            self.rows["sample_annotation"].append(
                {"token": token, "sample_token": samples[number], "instance_token": instance}
                | {"attribute_tokens": attributes, "visibility_token": str(len(_LEVELS)), "size": list(thing.size)}
                | {"num_lidar_pts": max(1, round(4000 / far**2)), "num_radar_pts": 0, **_located(pose), **links}
            )

    def _lidar(self, place: World, name: str, samples: list[str], clock: _Clock) -> None:
        calibration = self.add(
            "calibrated_sensor", name, LIDAR, sensor_token=self.token("sensor", LIDAR), camera_intrinsic=[],
            translation=list(LIDAR_PLACE), rotation=list(LIDAR_ROTATION),
        )  # fmt: skip
        tokens = [self.token("sample_data", name, LIDAR, number) for number in range(len(samples))]
        for number, (token, links) in enumerate(zip(tokens, _chain(tokens))):
            data: Row = {"sample_token": samples[number], "calibrated_sensor_token": calibration, "is_key_frame": True}
            data |= {"fileformat": "pcd", "width": 0, "height": 0, "filename": f"samples/{LIDAR}/{token}.pcd.bin"}
            self._data(token, data | links, place, number * KEY, clock)

    def _camera(
        self, place: World, camera: str, scene: tuple[str, list[str]], clock: _Clock
    ) -> Iterator[tuple[str, bytes]]:
        (name, samples), mount, config = scene, MOUNTS[camera], self.config
        intrinsic = mount.intrinsic(config.width, config.height)
        calibration = self.add(
            "calibrated_sensor", name, camera, sensor_token=self.token("sensor", camera),
            camera_intrinsic=intrinsic.tolist(), translation=list(mount.place), rotation=list(mount.rotation),
        )  # fmt: skip
        step = 1 if config.sweeps else FRAMES
        frames = range(0, (len(samples) - 1) * FRAMES + 1, step)
        tokens = [self.token("sample_data", name, camera, frame) for frame in frames]
        for frame, token, links in zip(frames, tokens, _chain(tokens)):
            key, time = frame % FRAMES == 0, frame * KEY / FRAMES - mount.delay
            filename = f"{'samples' if key else 'sweeps'}/{camera}/{token}.jpg"
            data: Row = {"sample_token": samples[-(-frame // FRAMES)], "calibrated_sensor_token": calibration}
            data |= {"is_key_frame": key, "fileformat": "jpg", "filename": filename}
            self._data(token, data | {"width": config.width, "height": config.height} | links, place, time, clock)
            seen = inverse(place.vehicle(time) @ mount.camera_to_ego())
            solids = [Solid(thing.name, seen @ place.pose(thing, time), thing.size) for thing in place.things]
            yield filename, jpeg(picture(solids, intrinsic, config.width, config.height))

    def _data(self, token: str, data: Row, place: World, time: float, clock: _Clock) -> None:
        """A record of a sensor, and the vehicle's pose at its time."""
        pose = self.add("ego_pose", token, timestamp=clock.stamp(time), **_located(place.vehicle(time)))
        self.rows["sample_data"].append(
            {"token": token, "timestamp": clock.stamp(time), "ego_pose_token": pose, **data}
        )


@dataclass(frozen=True)
class _Clock:
    """Of a scene."""

    start: int  # microseconds

    def stamp(self, seconds: float) -> int:
        return self.start + round(seconds * 1e6)


def _chain(tokens: list[str]) -> Iterator[dict[str, str]]:
    """Of each token, who comes before and after."""
    for before, after in zip(["", *tokens], [*tokens[1:], ""]):
        yield {"prev": before, "next": after}


def _located(pose: Floats) -> Row:
    """Where something upright is."""
    half = yaw(pose) / 2
    return {"translation": pose[:3, 3].tolist(), "rotation": [float(np.cos(half)), 0.0, 0.0, float(np.sin(half))]}


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _png(image: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png")
    return buffer.getvalue()
