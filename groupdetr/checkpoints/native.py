"""Our own weights file: safetensors under the model's names, with what the model is and was trained for beside them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from groupdetr.errors import WeightsError

METADATA = "groupdetr"  # the entry of the safetensors header that holds ours, as JSON


def unique_state(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model, each tensor once: modules that are shared, such as a head, go by their first name."""
    named = dict(model.named_parameters()).keys() | dict(model.named_buffers()).keys()
    return {name: value for name, value in model.state_dict().items() if name in named}


def save(model: nn.Module, path: str | Path, metadata: dict[str, Any]) -> None:
    """Write the weights whole or not at all: a process that dies on the way leaves the former file as it was.

    ``metadata``: anything that JSON can say. ``recipe`` (its fields), ``categories`` ([id, name] of every class) and
    ``imgsz`` make the file complete.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    tensors = {
        name: value.detach().cpu().contiguous() for name, value in unique_state(model).items()
    }
    try:
        save_file(tensors, draft, {"format": "pt", METADATA: json.dumps(metadata)})
        with draft.open("rb") as written:
            os.fsync(written.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a safetensors file, and our metadata ({} where another program wrote it)."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(json.loads((file.metadata() or {}).get(METADATA, "{}")))
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        remedy = "copy or download the file again"
        raise WeightsError(f"these weights cannot be read: {error}", str(path), remedy) from error
