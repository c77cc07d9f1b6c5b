"""This library's weights file ``best.safetensors``: tensors under our names, and metadata.

The metadata has the recipe of the model, the classes and the image size, so that no other file is
needed to run the model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from groupdetr.checkpoints.file_format import KEY, file_stamp, require_format
from groupdetr.errors import WeightsError
from groupdetr.structures.json_object import JsonObject


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
    """Write the weights of ``model`` completely or not at all.

    If the process dies while it writes, the previous file remains as it was. ``metadata`` is
    anything that JSON can hold. With ``recipe`` (its fields), ``categories`` ([id, name] of every
    class) and ``imgsz`` the file is complete. The format number and the version of the library are
    added to it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    tensors = {}
    for name, value in unique_state(model).items():
        tensors[name] = value.detach().cpu().contiguous()
    stamped = {**metadata, **file_stamp()}
    try:
        save_file(tensors, temporary, {"format": "pt", KEY: json.dumps(stamped)})
        # Windows only writes a file to the disk that is open for writing.
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: str | Path) -> tuple[dict[str, Tensor], JsonObject]:
    """Return the tensors of a safetensors file, and the metadata that `save` was given.

    The metadata is {} if another program wrote the file. `WeightsError` if the file cannot be read,
    or if this library wrote it in another format.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = _read_metadata(file.metadata() or {}, str(path))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        remedy = "copy or download the file again"
        raise WeightsError(f"these weights cannot be read: {error}", str(path), remedy) from error
    return tensors, metadata


def _read_metadata(header: Mapping[str, str], where: str) -> JsonObject:
    """Return the metadata in the header of a safetensors file, without the format number."""
    if KEY not in header:
        return {}
    stamped = dict(json.loads(header[KEY]))
    remedy = (
        "train again with groupdetr train, or convert the published weights again with "
        "groupdetr import"
    )
    require_format(stamped, where, remedy, WeightsError)
    return {name: value for name, value in stamped.items() if name not in file_stamp()}
