"""What a file is, recognised by its first bytes, if it was given in the place of weights.

Weights are often replaced by something else without a sign of it: a clone without Git LFS has
pointers, a download that needs a login has a web page, and an argument in the wrong place is an
image. An error that says what the file is saves the user the search.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HEAD = 4096  # bytes that are read of a file
MAX_ZIP_RATIO = 100  # of the sizes of a zip archive's content and of its file
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
WEIGHTS = "pass a file of weights: .safetensors, .pth, .pt or .pkl"
ORIGINAL = "pass the PyTorch checkpoint that it was exported from"
UNPACK = "unpack it, and pass the file that is inside"
AGAIN = "copy or download it again"


@dataclass(frozen=True)
class FileKind:
    """What a file is, if it is not weights that this library reads."""

    name: str  # a noun with its article, such as "a web page"
    remedy: str  # what to do if weights are needed
    is_json: bool = False  # True for all kinds of JSON files


def recognise(path: Path) -> FileKind | None:
    """Return what a file is, None if it may be weights. `OSError` if it cannot be read."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    size = path.stat().st_size
    if not head:
        return FileKind("an empty file", AGAIN)
    if is_safetensors(head, size):
        return None
    if zipfile.is_zipfile(path) or head.startswith(b"PK\x03\x04"):
        return _zip_kind(path, size)
    for is_kind, kind in BINARY_KINDS:
        if is_kind(head):
            return kind
    return _text_kind(path, head)


def holds_weights(path: Path) -> bool:
    """Return whether a file is one of weights by its first bytes, if `recognise` returns None."""
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


IMAGE = FileKind("an image", WEIGHTS)
VIDEO = FileKind("a video", WEIGHTS)
ARCHIVE = FileKind("a compressed archive", UNPACK)
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
    (lambda head: head[257:262] == b"ustar", FileKind("a tar archive", UNPACK)),
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
    if "model.weights.h5" in names:
        return FileKind("a Keras model", ORIGINAL)
    return FileKind("a zip archive", UNPACK)


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
        )
    if start.startswith("<"):
        return FileKind("an XML file", WEIGHTS)
    if start.startswith(("{", "[")):
        return _json_kind(path, text)
    if path.suffix.lower() in (".yaml", ".yml"):
        return FileKind("a YAML file", WEIGHTS)
    return None if PICKLE_PROTOCOL_0.match(text) else FileKind("a text file", WEIGHTS)


def _lfs_kind(text: str) -> FileKind:
    size = re.search(r"^size (\d{1,20})\s*$", text, re.MULTILINE)
    stands_for = f" that stands for a file of {size[1]} bytes" if size else ""
    return FileKind(
        f"a Git LFS pointer, a short text{stands_for}",
        "fetch the file itself: git lfs pull in the repository, or download it from its page",
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
        return FileKind("an annotation file", WEIGHTS, is_json=True)
    return FileKind("a JSON file", WEIGHTS, is_json=True)
