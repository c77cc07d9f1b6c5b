"""The named tensors of a file of weights, with its metadata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from groupdetr.checkpoints.metadata import MAX_SIZE, UNTRUSTED
from groupdetr.errors import WeightsError
from groupdetr.files.kinds import FileKind

Metadata = Mapping[str, Any]  # the content of a file that is not tensors
MAX_NAMES = 10  # that an error message lists
MAX_NAME_LENGTH = 200  # characters of each of them
MAX_TENSORS = 2**15  # more than any detector has
MAX_REPEATED = 20  # of the sizes of all tensors in memory and in the file; layers share heads
# Types of tensors that can be loaded into a model as they are.
PLAIN_TYPES = frozenset(
    (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool),
        *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    )
)


@dataclass(frozen=True)
class Checkpoint:
    """The named tensors of a file, and its metadata.

    ``metadata`` holds training arguments, a configuration, or what this library wrote; {} if the
    file has none. ``where`` is the path, for error messages. ``notes`` are lines for a report about
    what the file has besides, and how it was read.
    """

    state: dict[str, Tensor]
    metadata: Metadata
    where: str
    notes: tuple[str, ...] = ()
    is_training_state: bool = False  # True for the last.pt of a run of this library
    # The keys of the other sets of weights that the file has, such as ema_model
    other_entries: tuple[str, ...] = ()

    def positive_int(self, name: str) -> int | None:
        """Return an entry of the metadata if it is a positive integer, None otherwise.

        `WeightsError` if it is larger than the size of anything can be.
        """
        value = self.metadata.get(name)
        if type(value) is not int or value < 1:
            return None
        if value > MAX_SIZE:
            raise WeightsError(
                f"{name} is {value:.6g} in the metadata, and can be at most {MAX_SIZE}",
                self.where,
                UNTRUSTED,
            )
        return value


def expect_plain_tensors(state: Mapping[str, Tensor], where: str) -> None:
    """Raise `WeightsError` unless all tensors are ordinary ones, with their values in the file.

    A tensor may repeat the bytes of a small file until it fills the memory, or have no bytes.
    """
    if len(state) > MAX_TENSORS:
        raise WeightsError(
            f"this file has {len(state)} tensors, and no detector has more than {MAX_TENSORS}",
            where,
            "check that it is a file of weights",
        )
    unusual: list[str] = []
    stored: dict[int, int] = {}
    total = 0
    for name, tensor in state.items():
        is_dense = tensor.layout == torch.strided and not tensor.is_nested and not tensor.is_meta
        if not is_dense or tensor.dtype not in PLAIN_TYPES:
            kind = "without values" if tensor.is_meta else f"{tensor.dtype}, {tensor.layout}"
            unusual.append(f"{name[:MAX_NAME_LENGTH]} ({kind})".replace("torch.", ""))
            continue
        storage = tensor.untyped_storage()
        stored[storage.data_ptr()] = storage.nbytes()
        total += tensor.numel() * tensor.element_size()
    if unusual:
        raise WeightsError(
            f"these tensors are not plain numbers: {first_names(unusual)}",
            where,
            "use weights that are not quantised, sparse or divided among devices",
        )
    if total > MAX_REPEATED * sum(stored.values()) + 2**20:
        raise WeightsError(
            f"the tensors of this file have {total} bytes in memory, and {sum(stored.values())} in "
            "the file",
            where,
            UNTRUSTED,
        )


def first_names(names: Sequence[str]) -> str:
    """Return the first ten names separated by commas, and the number of all if there are more."""
    shown = []
    for name in names[:MAX_NAMES]:
        shown.append(name if len(name) <= MAX_NAME_LENGTH else f"{name[:MAX_NAME_LENGTH]}...")
    text = ", ".join(shown)
    if len(names) > MAX_NAMES:
        text += f", ... ({len(names)} in all)"
    return text


def other_file(kind: FileKind, path: Path) -> WeightsError:
    """Return the error for a file that is something else than weights."""
    return WeightsError(f"this is {kind.name}", str(path), kind.remedy)
