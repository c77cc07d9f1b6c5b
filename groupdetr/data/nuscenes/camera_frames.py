"""Everything the cameras recorded, between key frames too, as arrays: a million pictures take 200 MB, not gigabytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from groupdetr.data.nuscenes.geometry import embedded, inverse, poses
from groupdetr.data.nuscenes.names import CAMERAS
from groupdetr.data.nuscenes.tables import Row, Table, Tables, numbers, record_of, refused
from groupdetr.data.records import Floats, Ints

INTERVALS = 5  # how many key frames earlier frames reach back
BETWEEN = 5  # frames of a camera between two key frames, at 12 Hz


@dataclass(frozen=True, eq=False)
class Frame:
    """What V cameras saw at about one moment."""

    paths: tuple[Path, ...]  # [V]
    sizes: Ints  # [V,2] width, height in pixels
    times: Ints  # [V] microseconds
    lidar_to_image: (
        Floats  # [V,4,4] from the lidar frame of the sample, whenever this was, to (u d, v d, d, 1)
    )

    def ages(self, time: int) -> Floats:
        """[V] seconds from the pictures to ``time``."""
        return np.asarray((time - self.times) * 1e-6, dtype=np.float64)

    def followed_by(self, other: Frame) -> Frame:
        """The views of both."""
        return Frame(
            self.paths + other.paths,
            np.concatenate([self.sizes, other.sizes]),
            np.concatenate([self.times, other.times]),
            np.concatenate([self.lidar_to_image, other.lidar_to_image]),
        )


@dataclass(frozen=True, eq=False)
class Footage:
    """N pictures, each with the ego pose of its own moment."""

    root: Path
    names: tuple[str, ...]  # [N] relative to the root
    sizes: Ints  # [N,2] width, height in pixels
    times: Ints  # [N] microseconds
    previous: (
        Ints  # [N] row of the picture that the same camera took before; -1 where there is none
    )
    translations: Floats  # [N,3] of the vehicle in the world, metres
    rotations: Floats  # [N,4] w, x, y, z
    cameras: Ints  # [N] row of the calibrations
    ego_to_image: Floats  # [C,4,4] of the calibrations

    @classmethod
    def of(cls, tables: Tables) -> Footage:
        """Of a whole version, whatever its splits. A `DataError` where a pose or a calibration cannot be."""
        rows = filmed(tables)
        data = [tables["sample_data"][token] for token in rows]
        ego = [tables.find("ego_pose", row["ego_pose_token"], "sample_data", row) for row in data]
        translations, quaternions = located(tables["ego_pose"], ego)
        calibrations = {row["calibrated_sensor_token"]: None for row in data}
        places = {token: place for place, token in enumerate(calibrations)}
        return cls(
            root=tables.root,
            names=tuple(row["filename"] for row in data),
            sizes=np.array([(row["width"], row["height"]) for row in data], dtype=np.int64).reshape(
                -1, 2
            ),
            times=np.array([row["timestamp"] for row in data], dtype=np.int64),
            previous=np.array([rows.get(row["prev"], -1) for row in data], dtype=np.int64),
            translations=translations,
            rotations=quaternions,
            cameras=np.array(
                [places[row["calibrated_sensor_token"]] for row in data], dtype=np.int64
            ),
            ego_to_image=projections(tables["calibrated_sensor"], list(calibrations)),
        )

    def frame(self, rows: Ints, lidar_to_global: Floats) -> Frame:
        """The pictures ``rows`` [V], seen from a lidar."""
        vehicle = poses(self.translations[rows], self.rotations[rows])
        chain = self.ego_to_image[self.cameras[rows]] @ (inverse(vehicle) @ lidar_to_global)
        paths = tuple(self.root / self.names[row] for row in rows.tolist())
        return Frame(paths, self.sizes[rows], self.times[rows], chain)

    def earlier(self, keys: Sequence[Ints]) -> Ints:
        """The frames before a key frame, most recent first: [E,V], E at most 30.

        ``keys``: rows [V] of the key frame and of those before it, most recent first, six at most. As PETRv2 walks:
        for each interval five pictures back with every camera, then the key frame before. Where one has no picture
        left the last frame is repeated. A camera that took fewer than five waits at the key frame, which keeps frames
        in the order of time.
        """
        frames: list[Ints] = []
        for now, before in pairwise(keys):
            taken = [*self._walked(now, before)]
            last = (taken or frames or [before])[-1]
            frames += [*taken, *[last] * (BETWEEN - len(taken)), before]
        return np.array(frames, dtype=np.int64).reshape(-1, len(keys[0]))

    def _walked(self, now: Ints, before: Ints) -> Iterator[Ints]:
        """The frames between two key frames, most recent first, as long as every camera has one."""
        for _ in range(BETWEEN):
            now = np.where(now == before, now, self.previous[now])
            if (now < 0).any():
                return
            yield now


def filmed(tables: Tables) -> dict[str, int]:
    """The pictures of cameras: token of sample_data, and row of the footage."""
    tokens = (
        token for token, data in tables["sample_data"].items() if tables.channel(data) in CAMERAS
    )
    return {token: row for row, token in enumerate(tokens)}


def located(table: Table, rows: Sequence[Row]) -> tuple[Floats, Floats]:
    """Translations [N,3] and rotations [N,4] of records."""
    translations = numbers(table, "bad-pose", rows, "translation")
    rotations = numbers(table, "bad-pose", rows, "rotation")
    lengths = np.linalg.norm(rotations, axis=1)
    if not lengths.all():
        raise refused(
            "bad-pose",
            table.file,
            record_of(rows[int(lengths.argmin())]),
            "its rotation has length 0",
        )
    return translations, rotations


def projections(table: Table, tokens: Sequence[str]) -> Floats:
    """From the vehicle to the pictures of calibrated cameras [C,4,4]."""
    rows = [table[token] for token in tokens]
    intrinsics = numbers(table, "bad-calibration", rows, "camera_intrinsic")
    wrong = (intrinsics[:, [0, 1], [0, 1]] <= 0).any(1) | (intrinsics[:, 2] != (0, 0, 1)).any(1)
    if wrong.any():
        record = record_of(rows[int(wrong.argmax())])
        raise refused(
            "bad-calibration", table.file, record, "its camera_intrinsic is not that of a camera"
        )
    return embedded(intrinsics) @ inverse(poses(*located(table, rows)))
