"""The inputs of `groupdetr predict`: files, folders, globs, addresses, cameras, and stdin."""

from __future__ import annotations

import glob
import os
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from groupdetr.console.text import file_name
from groupdetr.data.cameras import camera_named
from groupdetr.data.image_files import ImageSearch, merge_searches, named_files, search_folder
from groupdetr.data.video import has_av, import_av, is_annotated_video
from groupdetr.data.wrong_inputs import PASS_IMAGES, describe_missing_image
from groupdetr.errors import UsageError
from groupdetr.files.downloads import is_address, name_in_address
from groupdetr.tasks.annotated_images import is_annotated
from groupdetr.tasks.detection2d.video_sources import is_video_address

STDIN = "-"  # an input that stands for the paths that stdin lists
_MAX_STEM = 200  # bytes of the name of an annotated copy; file systems allow 255 with the ending


@dataclass(frozen=True)
class PredictionInput:
    """One image, video or camera."""

    kind: Literal["image", "video", "camera"]
    argument: str  # a path, an address, or a camera as `camera_named` knows it

    @property
    def file_name(self) -> str:
        """The name that its outputs are named after."""
        if self.kind == "camera":
            return file_name(f"camera-{camera_named(self.argument)}")
        if is_address(self.argument) and not os.path.exists(self.argument):
            return name_in_address(self.argument)
        return Path(self.argument).name


def find_inputs(patterns: Sequence[str]) -> tuple[list[PredictionInput], ImageSearch]:
    """Return the images, videos and cameras that arguments name, in their order.

    The second result says what was left out. An existing path is always a file or folder.
    `UsageError` for an argument that names nothing, and for videos and cameras without PyAV.
    """
    inputs: list[PredictionInput] = []
    searches = [ImageSearch()]
    for pattern in patterns:
        exists = os.path.exists(pattern)
        if not exists and camera_named(pattern) is not None:
            import_av(pattern)
            inputs.append(PredictionInput("camera", pattern))
        elif not exists and is_address(pattern):
            kind: Literal["image", "video"] = "image"
            if is_video_address(pattern):
                import_av(pattern)
                kind = "video"
            inputs.append(PredictionInput(kind, pattern))
        else:
            search = find_images(pattern)
            searches.append(search)
            videos = set(search.videos)
            for path in sorted([*search.images, *search.videos]):
                inputs.append(PredictionInput("video" if path in videos else "image", str(path)))
    return inputs, merge_searches(searches)


def with_paths_of_stdin(inputs: Sequence[str]) -> list[str]:
    """Return the inputs with ``-`` replaced by the lines of stdin, which are one path each.

    `UsageError` if stdin has no line.
    """
    if STDIN not in inputs:
        return list(inputs)
    stream = sys.stdin.buffer if sys.stdin is not None and not sys.stdin.closed else ()
    lines = [os.fsdecode(line.rstrip(b"\r\n")) for line in stream]
    listed = [line for line in lines if line.strip()]
    if not listed:
        raise UsageError(
            "stdin lists no images",
            remedy="pipe one path a line: ls *.jpg | groupdetr predict RUN -",
        )
    patterns: list[str] = []
    for pattern in inputs:
        if pattern == STDIN:
            patterns += listed
            listed = []  # stdin can be read once
        else:
            patterns.append(pattern)
    return patterns


def find_images(pattern: str) -> ImageSearch:
    """Return the images and videos of a file, a folder (with its subfolders) or a glob.

    They are in a fixed order. In a folder, the ending of a name decides whether a file is an image
    or a video. A file that was named, or that a glob matches, is taken with any ending: it is a
    video if its name or its first bytes say so, and otherwise an image. Videos in folders are left
    out if PyAV is not installed; for one that was named, that is a `UsageError`.
    """
    path = Path(pattern)
    # The functions of os.path are False where those of Path raise, as for names that are too long.
    exists = os.path.exists(pattern)
    if os.path.isdir(pattern):
        search = search_folder(path)
        if search.videos and not has_av():
            search.videos_without_reader = len(search.videos)
            search.videos = []
    else:
        matches = [pattern] if exists else glob.glob(pattern, recursive=True)
        files = sorted(Path(match) for match in matches)
        search = named_files(file for file in files if exists or os.path.isfile(file))
        if search.videos:
            import_av(str(search.videos[0]))
    # Otherwise a folder that holds its own output would have more images every time.
    originals = [image for image in search.images if not is_annotated(image)]
    search.annotated_images = len(search.images) - len(originals)
    search.images = originals
    original_videos = [video for video in search.videos if not is_annotated_video(video)]
    search.annotated_videos = len(search.videos) - len(original_videos)
    search.videos = original_videos
    left_out = search.system_files or search.annotated_images or search.annotated_videos
    # Such files may be named because a shell expanded `folder/*`.
    named = os.path.isfile(pattern) and left_out
    if not search.images and not search.videos and not named:
        raise no_images(pattern, search)
    return search


def no_images(where: str, search: ImageSearch) -> UsageError:
    """Return the error for a search that found neither an image nor a video."""
    what, remedy = "no images were found", PASS_IMAGES
    if left_out := search.describe_left_out():
        what = f"{what} ({left_out})"
    elif not os.path.exists(where) and not glob.has_magic(where):
        described, remedy = describe_missing_image(where)
        what = described or "there is no such image or folder"
    return UsageError(what, where, remedy)


def annotated_paths(inputs: Sequence[PredictionInput], out: Path) -> list[Path]:
    """Return the path of the annotated copy of each input, in the folder ``out``.

    Inputs with the same name in several folders get different paths. The copy of a video or camera
    is an MP4 file. That of an image is a PNG file if the image is one, and otherwise a JPEG file.
    """
    used_names: set[str] = set()
    annotated = []
    for item in inputs:
        path = Path(item.file_name)
        stem = file_name(path.name) if item.kind == "camera" else path.stem
        # Whole characters are removed: macOS and Windows refuse names with a part of one.
        while len(os.fsencode(stem)) > _MAX_STEM:
            stem = stem[:-1]
        name = stem
        number = 1
        while _name_key(name) in used_names:
            number += 1
            name = f"{stem}-{number}"
        used_names.add(_name_key(name))
        suffix = ".png" if path.suffix.lower() == ".png" else ".jpg"
        annotated.append(out / f"{name}{suffix if item.kind == 'image' else '.mp4'}")
    return annotated


def _name_key(name: str) -> str:
    """Return a text that is equal for names that are the same file on some systems."""
    return unicodedata.normalize("NFC", name).casefold()
