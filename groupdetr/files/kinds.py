"""Recognises files and folders that were given in the place of something else.

A clone without Git LFS has pointers in the place of weights, a download that needs a login has a
web page, and an argument in the wrong place is an image or a run. An error that says what the file
is saves the user the search. A file is recognised by its first bytes, and not by its name.
"""

from __future__ import annotations

import re
import stat
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HEAD = 4096  # bytes that are read of a file
MAX_ZIP_RATIO = 100  # of the sizes of a zip archive's content and of its file
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
# What to do, if weights are needed
WEIGHTS = "pass a file of weights: .safetensors, .pth, .pt or .pkl"
ORIGINAL = "pass the PyTorch checkpoint that it was exported from"
UNPACK = "unpack it, and pass the file that is inside"
AGAIN = "copy or download it again"


# The endings of what `groupdetr export` writes for other runtimes
EXPORTED_ENDINGS = (".onnx", ".xml", ".pt2")


@dataclass(frozen=True)
class FileKind:
    """What a file is, if it is not weights that this library reads."""

    name: str  # a noun with its article, such as "a web page"
    remedy: str  # what to do if weights are needed
    is_json: bool = False  # True for all kinds of JSON files
    # True for an archive, a pointer or a web page: the remedy says how to get the file that was
    # meant, whatever is needed.
    stands_for_another: bool = False


def recognise(path: Path) -> FileKind | None:
    """Return what a file is, None if it may be weights. `OSError` if it cannot be read."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # Reading it may never end.
        return SPECIAL
    with path.open("rb") as file:
        head = file.read(HEAD)
    size = path.stat().st_size
    if not head:
        return EMPTY
    if is_safetensors(head, size):
        return None
    for is_kind, kind in BINARY_KINDS:
        if is_kind(head):
            return kind
    # After the others, because a tar archive may have a zip archive at its end.
    if zipfile.is_zipfile(path) or head.startswith(b"PK\x03\x04"):
        return _zip_kind(path, size)
    return _text_kind(path, head)


def holds_weights(path: Path) -> bool:
    """Return whether a file that `recognise` does not know begins like a file of weights."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    return is_safetensors(head, path.stat().st_size) or head.startswith((b"PK\x03\x04", b"\x80"))


def is_safetensors(head: bytes, size: int) -> bool:
    """Return whether a file begins like safetensors: eight bytes of length, then a JSON object.

    ``head`` are its first bytes, ``size`` is its number of bytes. A file that was cut off is
    recognised as long as the length is plausible.
    """
    length = int.from_bytes(head[:8], "little")
    return head[8:9] == b"{" and 2 <= length < max(size, 2**27)


def is_lfs_pointer(head: bytes) -> bool:
    """Return whether a file begins like a pointer of Git LFS."""
    return head.startswith(LFS_POINTER)


def _starts(*signatures: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(signatures)


def _is_mp4(head: bytes) -> bool:
    return head[4:8] == b"ftyp" and head[8:12] not in (b"avif", b"heic", b"heix", b"mif1")


def _is_heif(head: bytes) -> bool:
    return head[4:8] == b"ftyp" and not _is_mp4(head)


def _is_riff(kind: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(b"RIFF") and head[8:12] == kind


SPECIAL = FileKind("a device or a pipe", "save its content as a file, and pass that file")
EMPTY = FileKind("an empty file", AGAIN)
TEXT = FileKind("a text file", WEIGHTS)
ANNOTATIONS = FileKind("an annotation file", WEIGHTS, is_json=True)
IMAGE = FileKind("an image", WEIGHTS)
VIDEO = FileKind("a video", WEIGHTS)
ARCHIVE = FileKind("a compressed archive", UNPACK, stands_for_another=True)
# The first instructions of a pickle of protocol 0, which is a text.
PICKLE_PROTOCOL_0 = re.compile(r"\([dlti]p?\d*\n|c[A-Za-z_][\w.]*\n[A-Za-z_]\w*\n")
BINARY_KINDS: tuple[tuple[Callable[[bytes], bool], FileKind], ...] = (
    (_starts(b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"BM", b"II*\0", b"MM\0*"), IMAGE),
    (_is_riff(b"WEBP"), IMAGE),
    (_is_heif, IMAGE),
    (_is_riff(b"AVI "), VIDEO),
    (_is_mp4, VIDEO),
    (_starts(b"\x1aE\xdf\xa3", b"FLV\x01", b"\0\0\x01\xba"), VIDEO),
    (
        _starts(b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"7z\xbc\xaf", b"Rar!", b"\x28\xb5\x2f\xfd"),
        ARCHIVE,
    ),
    (
        lambda head: head[257:262] == b"ustar",
        FileKind("a tar archive", UNPACK, stands_for_another=True),
    ),
    (_starts(b"\x89HDF"), FileKind("an HDF5 file, as Keras writes weights", ORIGINAL)),
    (_starts(b"GGUF"), FileKind("a GGUF file", ORIGINAL)),
    (lambda head: head[4:8] == b"TFL3", FileKind("a TensorFlow Lite model", ORIGINAL)),
    (_starts(b"ptrt", b"ftrt"), FileKind("a TensorRT engine", ORIGINAL)),
    (_starts(b"\x93NUMPY"), FileKind("a numpy array", WEIGHTS)),
    (_starts(b"%PDF"), FileKind("a PDF document", WEIGHTS)),
    (
        # The first field of an ONNX model is the version of its format, the second its producer.
        lambda head: re.match(rb"\x08[\x01-\x20]\x12.[ -~]", head) is not None,
        FileKind("an ONNX model", ORIGINAL),
    ),
)


def _zip_kind(path: Path, size: int) -> FileKind | None:
    """Return what a zip archive is, None for one that torch has written."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        return FileKind("a file that is damaged: its end is missing", AGAIN)
    if sum(entry.file_size for entry in entries) > MAX_ZIP_RATIO * size + 2**20:
        return FileKind(
            f"an archive that unpacks to more than {MAX_ZIP_RATIO} times its size",
            "torch does not compress checkpoints: get the file from a source that you trust",
        )
    names = [entry.filename for entry in entries]
    if any(name.endswith(("/constants.pkl", "/code/__torch__.py")) for name in names):
        return FileKind(
            "a TorchScript archive: it holds a program and not only weights",
            f"{ORIGINAL}; or, if you trust it, in Python: "
            'torch.save(torch.jit.load(FILE).state_dict(), "weights.pth")',
        )
    if any(name.rpartition("/")[2] == "data.pkl" for name in names):
        return None
    if names and all(name.endswith(".npy") for name in names):
        return FileKind("an archive of numpy arrays (.npz)", ORIGINAL)
    if any(name.endswith("/archive_format") for name in names):
        return FileKind("a program of torch.export", ORIGINAL)
    if "model.weights.h5" in names:
        return FileKind("a Keras model", ORIGINAL)
    return FileKind("a zip archive", UNPACK, stands_for_another=True)


def _text_kind(path: Path, head: bytes) -> FileKind | None:
    """Return what a text is, None if the file is not a text."""
    try:
        # The last character may be cut off.
        text = (
            head.decode("utf-8-sig")
            if len(head) < HEAD
            else head[:-4].decode("utf-8-sig", "ignore")
        )
    except UnicodeDecodeError:
        return None
    control_characters = set(text) - set("\t\n\r\f\x1b")
    if any(ord(character) < 32 for character in control_characters):
        return None
    start = text.lstrip().lower()
    if is_lfs_pointer(head):
        return _lfs_kind(text)
    if start.startswith(("<!doctype html", "<html", "<head", "<body")):
        return FileKind(
            "a web page and not the file that it offers",
            "download the file itself: the address of its page is another one, and some files need "
            "a login first",
            stands_for_another=True,
        )
    if re.match(r"(<\?xml[^>]*>)?\s*<net\s", start):
        return FileKind("an OpenVINO model", ORIGINAL)
    if start.startswith("<"):
        return FileKind("an XML file", WEIGHTS)
    if start.startswith(("{", "[")):
        return _json_kind(path, text)
    if path.suffix.lower() in (".yaml", ".yml"):
        return FileKind("a YAML file", WEIGHTS)
    return None if PICKLE_PROTOCOL_0.match(text) else TEXT


def _lfs_kind(text: str) -> FileKind:
    size = re.search(r"^size (\d{1,20})\s*$", text, re.MULTILINE)
    stands_for = f" that stands for a file of {size[1]} bytes" if size else ""
    return FileKind(
        f"a Git LFS pointer, a short text{stands_for}",
        "fetch the file itself: git lfs pull in the repository, or download it from its page",
        stands_for_another=True,
    )


def _json_kind(path: Path, text: str) -> FileKind:
    if '"weight_map"' in text or path.name.endswith(".index.json"):
        return FileKind(
            "the index of weights that are divided into several files",
            f"pass their folder: {path.parent}",
            is_json=True,
        )
    if path.name == "config.json" or '"model_type"' in text:
        return FileKind(
            "a configuration without weights",
            f"pass the folder that has it and the weights: {path.parent}",
            is_json=True,
        )
    if '"annotations"' in text or '"categories"' in text:
        return ANNOTATIONS
    return FileKind("a JSON file", WEIGHTS, is_json=True)


def is_run(folder: Path) -> bool:
    """Return whether a folder is that of a run, which `groupdetr train` wrote."""
    return (folder / "config.yaml").is_file() and (folder / "weights").is_dir()


def run_around(path: Path) -> Path | None:
    """Return the run that a file or folder is inside of, None if there is none."""
    # The deepest files of a run are in the folder of an evaluation: RUN/val/images.
    for parent in path.absolute().parents[:3]:
        if is_run(parent):
            # As short as the user wrote it, if that is possible.
            return next((p for p in path.parents if p.absolute() == parent), parent)
    return None
