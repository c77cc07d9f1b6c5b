"""Images in folders are found by one list of endings; what a system wrote is left out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from groupdetr.data import image_decoding
from groupdetr.data.dataset_files import find_files
from groupdetr.data.image_files import (
    IMAGE_SUFFIXES,
    is_image_name,
    is_system_name,
    merge_searches,
    named_files,
    search_folder,
)


def create(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def test_the_endings_are_all_those_of_the_formats_that_are_decoded() -> None:
    Image.init()
    extensions = Image.registered_extensions()
    known = {end for end, kind in extensions.items() if kind in image_decoding._FORMATS}
    assert known <= set(IMAGE_SUFFIXES)
    others = {end for end in IMAGE_SUFFIXES if extensions.get(end) not in image_decoding._FORMATS}
    # Pillow may lack AVIF, and HEIF. Such images are found, and the error says what is wrong.
    assert others <= {".avif", ".avifs", ".heic", ".heics", ".heif", ".heifs", ".hif"}


def test_predict_and_check_find_images_of_every_ending(tmp_path: Path) -> None:
    for suffix in IMAGE_SUFFIXES:
        root = tmp_path / suffix
        create(root, f"images/a{suffix}", f"images/B{suffix.upper()}", "labels.json")
        assert [path.stem for path in search_folder(root).images] == ["B", "a"], suffix
        assert find_files(root)["train"].images == root / "images", suffix


def test_files_of_a_system_are_left_out_and_counted(tmp_path: Path) -> None:
    for name in ("._a.jpg", ".DS_Store", "Thumbs.db", "desktop.ini"):
        root = tmp_path / name.strip(".")
        create(root, "a.jpg", name, f"sub/{name}")
        assert is_system_name(name)
        assert not is_image_name(name)
        search = search_folder(root)
        assert search.images == [root / "a.jpg"]
        assert search.describe_left_out() == "left out: 2 files that the system wrote"
        named = named_files([root / "a.jpg", root / name, root / "b.unknown"])
        assert named.images == [root / "a.jpg", root / "b.unknown"]


def test_folders_of_a_system_are_left_out(tmp_path: Path) -> None:
    for folder in ("__MACOSX", ".Trashes", "$RECYCLE.BIN", "@eaDir"):
        create(tmp_path, f"sub/{folder}/a.jpg", f"{folder}/x/b.jpg")
    create(tmp_path, "sub/a.jpg")
    assert search_folder(tmp_path).images == [tmp_path / "sub/a.jpg"]


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    create(tmp_path / "one", "a.jpg", "b.dng", "c.DNG", "d", "\x1b[2J.\x1b[31m")
    create(tmp_path / "two", "b.txt", ".DS_Store", "e.png")
    (tmp_path / "two/link").symlink_to(tmp_path / "one")
    search = merge_searches([search_folder(tmp_path / "one"), search_folder(tmp_path / "two")])
    assert [path.name for path in search.images] == ["a.jpg", "e.png"]
    line = search.describe_left_out()
    assert line.isprintable()
    assert line.startswith("left out: 5 files without the ending of an image (.dng, ")
    assert line.endswith("1 file that the system wrote, 1 link to folders")
    assert search_folder(tmp_path / "one").describe_left_out().count("4 files") == 1
    create(tmp_path / "three", "a.jpg")
    assert not search_folder(tmp_path / "three").describe_left_out()


def test_broken_links_and_folders_that_cannot_be_read_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(tmp_path, "a.jpg", "private/b.jpg")
    (tmp_path / "c.jpg").symlink_to(tmp_path / "gone.jpg")
    scandir = os.scandir

    def refuse_private(path: str) -> Iterator[os.DirEntry[str]]:
        if os.path.basename(path) == "private":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse_private)
    search = search_folder(tmp_path)
    assert [path.name for path in search.images] == ["a.jpg"]
    line = search.describe_left_out()
    assert line == "left out: 1 broken link, 1 folder that cannot be read"
