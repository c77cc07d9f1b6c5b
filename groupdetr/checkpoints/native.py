"""This library's weights file ``best.safetensors``: tensors under our names, and metadata.

The metadata has the recipe of the model, the classes and the image size, so that no other file is
needed to run the model. The header has a checksum of the tensors, because safetensors does not
notice changed bits.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn

from groupdetr.checkpoints.file_format import KEY, file_stamp, require_format
from groupdetr.checkpoints.metadata import UNTRUSTED, check_native_metadata, invalid
from groupdetr.console.text import quote
from groupdetr.errors import WeightsError
from groupdetr.files.writing import write_atomically
from groupdetr.structures.json_object import JsonObject

CHECKSUM = "sha256"  # the entry of the header that has the checksum of everything behind it
CHUNK = 2**20


def unique_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of a model with each tensor once.

    Modules that are shared, such as a prediction head, appear under their first name only.
    """
    parameters = dict(model.named_parameters())
    buffers = dict(model.named_buffers())
    return {
        name: value
        for name, value in model.state_dict().items()
        if name in parameters or name in buffers
    }


def save(model: nn.Module, path: str | Path, metadata: JsonObject) -> None:
    """Write the weights of ``model`` as `save_state` does."""
    save_state(unique_state(model), path, metadata)


def save_state(state: Mapping[str, Tensor], path: str | Path, metadata: JsonObject) -> None:
    """Write the weights of a model, a `unique_state`, completely or not at all.

    If the process dies while it writes, the previous file remains as it was. ``metadata`` is
    anything that JSON can hold. With ``recipe`` (its fields), ``categories`` ([id, name] of every
    class) and ``imgsz`` the file is complete. The format number and the version of the library are
    added to it. `WriteError` if the file cannot be written.
    """
    tensors = {}
    for name, value in state.items():
        tensors[name] = value.detach().cpu().contiguous()
    stamped = {**metadata, **file_stamp()}
    content = memoryview(serialize(tensors, {"format": "pt", KEY: json.dumps(stamped)}))
    # A file begins with the length of its header, the header, and spaces up to a multiple of 8.
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(bytes(content[8:start]))
    header["__metadata__"][CHECKSUM] = hashlib.sha256(content[start:]).hexdigest()
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    def write(file: IO[bytes]) -> None:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        file.write(content[start:])

    write_atomically(Path(path), write)


def read_metadata(path: str | Path) -> JsonObject:
    """Return the metadata as `read` does, without reading the tensors."""
    return _read(Path(path), with_tensors=False)[1]


def read(path: str | Path) -> tuple[dict[str, Tensor], JsonObject]:
    """Return the tensors of a safetensors file, and the metadata that `save` was given.

    The metadata is {} if another program wrote the file. `WeightsError` if the file cannot be read
    or is damaged, or if this library wrote it in another format.
    """
    return _read(Path(path), with_tensors=True)


def _read(path: Path, with_tensors: bool) -> tuple[dict[str, Tensor], JsonObject]:
    tensors: dict[str, Tensor] = {}
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            metadata = _read_metadata(header, str(path))
            if with_tensors:
                _check_sum(path, header)
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise WeightsError(
            f"these weights cannot be read: {error.strerror or error}",
            str(path),
            "check the path and its permissions",
        ) from error
    except (SafetensorError, RuntimeError, TypeError, ValueError) as error:
        what = "this is not a safetensors file, or it is damaged"
        raise WeightsError(f"{what}: {error}", str(path), damage_remedy(path)) from error
    return tensors, metadata


def _check_sum(path: Path, header: Mapping[str, str]) -> None:
    """Raise `WeightsError` unless the tensors of a file are those that `save` wrote.

    A file of another program has no checksum.
    """
    if CHECKSUM not in header:
        return
    checksum = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(int.from_bytes(file.read(8), "little"), 1)
        while chunk := file.read(CHUNK):
            checksum.update(chunk)
    if checksum.hexdigest() != header[CHECKSUM]:
        raise WeightsError(
            "the weights in this file are damaged: their checksum is wrong",
            str(path),
            f"{damage_remedy(path)}; if you changed them yourself, save them without the entry "
            f"{CHECKSUM} of the metadata",
        )


def damage_remedy(path: Path) -> str:
    """Return what to do about a file that is damaged."""
    run = path.parent.parent
    if path.parent.name == "weights" and (run / "config.yaml").is_file():
        return (
            "restore the file from a copy, or let its run evaluate and write its weights again: "
            f"groupdetr train --resume {quote(run)}"
        )
    return "copy or download the file again"


def sizes(path: str | Path) -> list[int]:
    """Return the number of elements of every tensor of a safetensors file that `read` has read."""
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        return [math.prod(file.get_slice(name).get_shape()) for name in names]


def _read_metadata(header: Mapping[str, str], where: str) -> JsonObject:
    """Return the metadata in the header of a safetensors file, without the format number."""
    if KEY not in header:
        return {}
    stamped = _parse(header[KEY], where)
    remedy = (
        "train again with groupdetr train, or convert the published weights again with "
        "groupdetr import"
    )
    require_format(stamped, where, remedy, WeightsError)
    check_native_metadata(stamped, where)
    return {name: value for name, value in stamped.items() if name not in file_stamp()}


def _parse(text: str, where: str) -> JsonObject:
    """Return the object that a text is in JSON. `WeightsError` if it is something else."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WeightsError(
            f"the metadata of this file cannot be used: {error}", where, UNTRUSTED
        ) from error
    if not isinstance(content, dict):
        raise invalid(KEY, content, "an object", where)
    return content
