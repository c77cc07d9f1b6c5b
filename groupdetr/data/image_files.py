"""Files in folders: which names are those of images, of videos, and of what a system wrote itself.

Every command has the same list. A name decides, because opening every file of a folder would take
minutes on a network drive.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from groupdetr.console.text import escape_controls, quantity
from groupdetr.data.video import INSTALL, is_video, is_video_name

# The endings, in lower case, of the formats that `groupdetr.data.image_decoding` reads.
IMAGE_SUFFIXES = (
    # JPEG; .mpo holds several JPEGs
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".mpo",
    # PNG
    ".png",
    ".apng",
    # bitmaps of Windows
    ".bmp",
    ".dib",
    # GIF, WebP, AVIF
    ".gif",
    ".webp",
    ".avif",
    ".avifs",
    # HEIF, as phones of Apple write; it needs the extra ``heif``
    ".heic",
    ".heics",
    ".heif",
    ".heifs",
    ".hif",
    # TIFF
    ".tif",
    ".tiff",
    # JPEG 2000
    ".jp2",
    ".j2k",
    ".j2c",
    ".jpc",
    ".jpf",
    ".jpx",
    # portable bitmaps
    ".pbm",
    ".pgm",
    ".ppm",
    ".pnm",
    ".pfm",
    # Targa
    ".tga",
    ".icb",
    ".vda",
    ".vst",
)
# What systems and programs write into folders of images, in lower case: macOS, Windows, Synology,
# Jupyter.
_SYSTEM_FILES = frozenset({".ds_store", ".localized", "thumbs.db", "ehthumbs.db", "desktop.ini"})
_SYSTEM_FOLDERS = frozenset(
    {
        "__macosx",
        ".appledouble",
        ".fseventsd",
        ".spotlight-v100",
        ".temporaryitems",
        ".trashes",
        "$recycle.bin",
        "system volume information",
        "@eadir",
        ".ipynb_checkpoints",
    }
)


def is_image_name(name: str) -> bool:
    """True if a file of this name is an image, as far as the name tells."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not is_system_name(name)


def is_system_name(name: str) -> bool:
    """True if a system writes files of this name beside the files of a user.

    macOS writes ``._a.jpg`` beside ``a.jpg`` on drives and in archives of other systems.
    """
    return name.startswith("._") or name.lower() in _SYSTEM_FILES


def is_system_folder(name: str) -> bool:
    """True if a system or program keeps folders of this name for itself."""
    return name.lower() in _SYSTEM_FOLDERS


@dataclass
class ImageSearch:
    """The images and videos that a search found, and what it left out."""

    images: list[Path] = field(default_factory=list)
    videos: list[Path] = field(default_factory=list)
    # The number of other files by ending, such as ".txt", without those that a system wrote.
    other_files: Counter[str] = field(default_factory=Counter)
    system_files: int = 0
    annotated_images: int = 0  # that `groupdetr predict` wrote
    annotated_videos: int = 0
    videos_without_reader: int = 0  # that were found in a folder, while PyAV is not installed
    linked_folders: int = 0
    broken_links: list[Path] = field(default_factory=list)
    unreadable_folders: int = 0

    def describe_left_out(self) -> str:
        """Return a line about what was left out, an empty text if it is nothing."""
        parts = []
        number = self.other_files.total()
        if number:
            most_common = [escape_controls(suffix) for suffix, _ in self.other_files.most_common(5)]
            endings = ", ".join(most_common)
            if len(self.other_files) > len(most_common):
                endings += ", ..."
            parts.append(f"{quantity(number, 'file')} without the ending of an image ({endings})")
        if self.annotated_images:
            parts.append(f"{quantity(self.annotated_images, 'annotated image')} of an earlier run")
        if self.annotated_videos:
            parts.append(f"{quantity(self.annotated_videos, 'annotated video')} of an earlier run")
        if self.videos_without_reader:
            number_of_videos = quantity(self.videos_without_reader, "video")
            parts.append(f"{number_of_videos} (they need {INSTALL})")
        if self.system_files:
            parts.append(f"{quantity(self.system_files, 'file')} that the system wrote")
        if self.linked_folders:
            parts.append(f"{quantity(self.linked_folders, 'link')} to folders")
        if self.broken_links:
            parts.append(quantity(len(self.broken_links), "broken link"))
        if self.unreadable_folders:
            parts.append(f"{quantity(self.unreadable_folders, 'folder')} that cannot be read")
        return f"left out: {', '.join(parts)}" if parts else ""


def search_folder(folder: Path, follow_links: bool = False) -> ImageSearch:
    """Return the images and the videos in a folder and its subfolders, sorted by path.

    Links to folders inside are counted, or followed with ``follow_links``, each folder once.
    Folders that a system keeps for itself are left out.
    """
    search = ImageSearch()
    visited = {os.path.realpath(folder)}

    def count_unreadable(_error: OSError) -> None:
        search.unreadable_folders += 1

    for parent, folders, names in os.walk(
        folder, onerror=count_unreadable, followlinks=follow_links
    ):
        folders[:] = [name for name in folders if not is_system_folder(name)]
        if follow_links:
            folders[:] = not_visited(parent, folders, visited)
        else:
            search.linked_folders += sum(
                os.path.islink(os.path.join(parent, name)) for name in folders
            )
        for name in names:
            path = Path(parent, name)
            if not os.path.isfile(path):
                if not os.path.exists(path):
                    search.broken_links.append(path)
                continue
            if is_system_name(name):
                search.system_files += 1
            elif is_image_name(name):
                search.images.append(path)
            elif is_video_name(name):
                search.videos.append(path)
            else:
                search.other_files[path.suffix.lower() or "no ending"] += 1
    search.images.sort()
    search.videos.sort()
    return search


def not_visited(parent: str | Path, names: Iterable[str], visited: set[str]) -> list[str]:
    """Return the subfolders of a folder that a search has not seen, and add them to ``visited``.

    ``visited`` has real paths. A link may lead to a folder that contains it. Folders come before
    links to folders, so a folder and a link to it are found as the folder.
    """
    found = []
    paths = {name: os.path.join(parent, name) for name in names}
    for name in sorted(paths, key=lambda name: (os.path.islink(paths[name]), name)):
        target = os.path.realpath(paths[name])
        if target not in visited:
            visited.add(target)
            found.append(name)
    return found


def named_files(files: Iterable[Path]) -> ImageSearch:
    """Return files that a user named. They may have any ending, but system files are left out."""
    search = ImageSearch()
    for path in files:
        if is_system_name(path.name):
            search.system_files += 1
        elif is_video(path):
            search.videos.append(path)
        else:
            search.images.append(path)
    return search


def merge_searches(searches: Iterable[ImageSearch]) -> ImageSearch:
    """Return the results of several searches as one, in their order."""
    merged = ImageSearch()
    for search in searches:
        merged.images += search.images
        merged.videos += search.videos
        merged.other_files += search.other_files
        merged.system_files += search.system_files
        merged.annotated_images += search.annotated_images
        merged.annotated_videos += search.annotated_videos
        merged.videos_without_reader += search.videos_without_reader
        merged.linked_folders += search.linked_folders
        merged.broken_links += search.broken_links
        merged.unreadable_folders += search.unreadable_folders
    return merged
