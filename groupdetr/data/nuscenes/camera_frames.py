"""All camera images of a nuScenes version, key frames and sweeps, as arrays.

Arrays keep a million images in 200 MB. The JSON records of the same images take gigabytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from groupdetr.data.findings import Findings, RefusedError, printable
from groupdetr.data.nuscenes.geometry import invert_poses, pose_matrices, to_homogeneous
from groupdetr.data.nuscenes.names import CAMERAS
from groupdetr.data.nuscenes.tables import Row, Table, Tables, describe_record, read_floats, refusal
from groupdetr.data.paths import is_unusual, refused_name, with_slashes
from groupdetr.data.records import Floats, Ints

INTERVALS = 5  # number of intervals between key frames that earlier frames cover
SWEEPS = 5  # images that a camera takes between two key frames, at 12 Hz


@dataclass(frozen=True, eq=False)
class Frame:
    """V images, one of each camera, taken at about the same time."""

    paths: tuple[Path, ...]  # [V]
    sizes: Ints  # [V,2] width, height in pixels
    times: Ints  # [V] microseconds
    # [V,4,4] from the lidar frame of the sample to (u d, v d, d, 1). An earlier frame of the same
    # sample is projected from the same lidar frame.
    lidar_to_image: Floats

    def ages(self, time: int) -> Floats:
        """Return the seconds from each image to ``time`` (microseconds): [V]."""
        return np.asarray((time - self.times) * 1e-6, dtype=np.float64)

    def cat(self, other: Frame) -> Frame:
        """Return a frame with the images of both, those of ``other`` last."""
        return Frame(
            self.paths + other.paths,
            np.concatenate([self.sizes, other.sizes]),
            np.concatenate([self.times, other.times]),
            np.concatenate([self.lidar_to_image, other.lidar_to_image]),
        )


@dataclass(frozen=True, eq=False)
class CameraFrames:
    """The N camera images of a version, each with the ego pose at the time of the image."""

    root: Path
    names: tuple[str, ...]  # [N] file names relative to the root
    sizes: Ints  # [N,2] width, height in pixels
    times: Ints  # [N] microseconds
    previous: Ints  # [N] index of the previous image of the same camera; -1 if there is none
    translations: Floats  # [N,3] of the ego vehicle in the global frame, metres
    rotations: Floats  # [N,4] quaternions w, x, y, z of the ego vehicle
    calibrations: Ints  # [N] index into ego_to_image
    ego_to_image: Floats  # [C,4,4] of the calibrated cameras

    @classmethod
    def from_tables(cls, tables: Tables) -> CameraFrames:
        """Read the images of a whole version, of all splits.

        `DataError` if a pose or a calibration is invalid, or if the name of a file leads out of the
        folder of the dataset.
        """
        indices = camera_frame_indices(tables)
        rows = [tables["sample_data"][token] for token in indices]
        ego_rows = [
            tables.lookup("ego_pose", row["ego_pose_token"], "sample_data", row) for row in rows
        ]
        translations, rotations = read_poses(tables["ego_pose"], ego_rows)
        # Calibrations are numbered in the order in which images refer to them.
        calibration_indices: dict[str, int] = {}
        for row in rows:
            token = row["calibrated_sensor_token"]
            calibration_indices.setdefault(token, len(calibration_indices))
        sizes = [(row["width"], row["height"]) for row in rows]
        times = [row["timestamp"] for row in rows]
        previous = [indices.get(row["prev"], -1) for row in rows]
        calibrations = [calibration_indices[row["calibrated_sensor_token"]] for row in rows]
        return cls(
            root=tables.root,
            names=read_file_names(tables, rows),
            sizes=np.array(sizes, dtype=np.int64).reshape(-1, 2),
            times=np.array(times, dtype=np.int64),
            previous=np.array(previous, dtype=np.int64),
            translations=translations,
            rotations=rotations,
            calibrations=np.array(calibrations, dtype=np.int64),
            ego_to_image=read_projections(tables["calibrated_sensor"], list(calibration_indices)),
        )

    def frame(self, indices: Ints, lidar_to_global: Floats) -> Frame:
        """Return the frame of the images ``indices`` [V].

        Its projections start from the frame of a lidar at the pose ``lidar_to_global`` [4,4].
        """
        # The vehicle moves between the time of the lidar and that of an image, so points go through
        # the global frame: lidar -> global -> ego at the image's time -> image.
        ego_to_global = pose_matrices(self.translations[indices], self.rotations[indices])
        lidar_to_ego = invert_poses(ego_to_global) @ lidar_to_global
        lidar_to_image = self.ego_to_image[self.calibrations[indices]] @ lidar_to_ego
        paths = tuple(self.root / self.names[index] for index in indices.tolist())
        return Frame(paths, self.sizes[indices], self.times[indices], lidar_to_image)

    def earlier_frames(self, key_frames: Sequence[Ints]) -> Ints:
        """Return the frames before a key frame, most recent first: indices [E,V], E at most 30.

        ``key_frames`` holds image indices [V] of the key frame and of those before it, most recent
        first, at most six. The order is that of PETRv2's code: for each interval, five frames back
        in time, then the previous key frame. Where a camera has no earlier image, the last frame
        is repeated. A camera with fewer than five images in an interval stays at the previous key
        frame, so the frames stay in the order of time.
        """
        frames: list[Ints] = []
        for current, previous in pairwise(key_frames):
            sweeps = list(self._sweeps_between(current, previous))
            if sweeps:
                last = sweeps[-1]
            elif frames:
                last = frames[-1]
            else:
                last = previous
            repeated = [last] * (SWEEPS - len(sweeps))
            frames += [*sweeps, *repeated, previous]
        return np.array(frames, dtype=np.int64).reshape(-1, len(key_frames[0]))

    def _sweeps_between(self, current: Ints, previous: Ints) -> Iterator[Ints]:
        """Yield the frames between two key frames, most recent first.

        It ends at the first frame that one of the cameras does not have.
        """
        for _ in range(SWEEPS):
            current = np.where(current == previous, current, self.previous[current])
            if (current < 0).any():
                return
            yield current


def camera_frame_indices(tables: Tables) -> dict[str, int]:
    """Return the index in `CameraFrames` of every camera image, by its token in sample_data."""
    indices: dict[str, int] = {}
    for token, row in tables["sample_data"].items():
        if tables.channel(row) in CAMERAS:
            indices[token] = len(indices)
    return indices


def read_file_names(tables: Tables, rows: Sequence[Row]) -> tuple[str, ...]:
    """Return the file names of records of sample_data, relative to the root, with slashes.

    `DataError` for the first one that cannot be used.
    """
    for finding in file_name_findings(tables, rows):
        if finding.is_error:
            raise RefusedError(finding)
    return tuple(with_slashes(row["filename"]) for row in rows)


def file_name_findings(tables: Tables, rows: Sequence[Row]) -> Findings:
    """Return the findings about file names: those that are refused, and those with backslashes.

    Links are followed without a finding: the folders of the images are often on another disk.
    """
    findings = Findings(tables.file("sample_data"))
    for row in rows:
        name = row["filename"]
        if not is_unusual(name):
            continue
        if refused := refused_name(name, "the folder of the dataset"):
            code, problem = refused
            findings.add(code, describe_record(row), f"filename {printable(name)} {problem}")
        elif "\\" in name:
            what = f"filename {printable(name)} has backslashes"
            findings.add("backslash", describe_record(row), what)
    return findings


def read_poses(table: Table, rows: Sequence[Row]) -> tuple[Floats, Floats]:
    """Return translations [N,3] and rotations [N,4] of records. `DataError` if one is invalid."""
    translations = read_floats(table, "bad-pose", rows, "translation")
    rotations = read_floats(table, "bad-pose", rows, "rotation")
    lengths = np.linalg.norm(rotations, axis=1)
    if not lengths.all():
        record = describe_record(rows[int(lengths.argmin())])
        raise refusal("bad-pose", table.file, record, "its rotation has length 0")
    return translations, rotations


def read_projections(table: Table, tokens: Sequence[str]) -> Floats:
    """Return the projections of calibrated cameras [C,4,4], from the ego vehicle to the image.

    `DataError` if a calibration is invalid.
    """
    rows = [table[token] for token in tokens]
    intrinsics = read_floats(table, "bad-calibration", rows, "camera_intrinsic")
    bad_focal_length = (intrinsics[:, [0, 1], [0, 1]] <= 0).any(1)
    bad_last_row = (intrinsics[:, 2] != (0, 0, 1)).any(1)
    invalid = bad_focal_length | bad_last_row
    if invalid.any():
        record = describe_record(rows[int(invalid.argmax())])
        what = "its camera_intrinsic is not that of a camera"
        raise refusal("bad-calibration", table.file, record, what)
    translations, rotations = read_poses(table, rows)
    camera_to_ego = pose_matrices(translations, rotations)
    return to_homogeneous(intrinsics) @ invert_poses(camera_to_ego)
