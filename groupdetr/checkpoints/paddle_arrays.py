"""Reads what PaddlePaddle writes into a .pdparams file besides its arrays.

Such a file is a pickle of ``{name: array}``, which `numpy_pickle` reads. `paddle.save` adds a dict
with the names that the parameters have in a program of PaddlePaddle. In pickles before protocol 4
it also cuts arrays of more than 2**30 bytes into slices, and adds a dict that describes them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from groupdetr.errors import WeightsError

NAMES_IN_PROGRAM = "StructuredToParameterName@@"  # name of an array -> name in the program
SLICES = "UnpackBigParamInfor@@"  # name of an array -> its shape, and the names of its slices
MAX_NAMES, MAX_NAME_LENGTH = 10, 200  # that an error message lists, and the characters of each


def plain_arrays(content: Mapping[object, object], where: str) -> Mapping[object, object]:
    """Return the named arrays of a file without what PaddlePaddle adds, and with whole arrays.

    Content that PaddlePaddle has not written is returned as it is. ``where`` is the file.
    `WeightsError` for slices that are not an array, and for arrays of bfloat16.
    """
    names_in_program = content.get(NAMES_IN_PROGRAM)
    if not _is_table_of_names(names_in_program):
        return content
    arrays = {name: value for name, value in content.items() if name != NAMES_IN_PROGRAM}
    slices = arrays.pop(SLICES, {})
    if not isinstance(slices, Mapping):
        raise _damaged(SLICES, where)
    for name, description in slices.items():
        arrays[name] = _joined(str(name), description, arrays, where)

    # PaddlePaddle has no tensors of unsigned 16-bit numbers. It writes bfloat16 as such.
    bfloat16 = []
    for name, value in arrays.items():
        if isinstance(value, Tensor) and value.dtype == torch.uint16:
            bfloat16.append(str(name))
    if bfloat16:
        raise WeightsError(
            "these arrays are in bfloat16, which PaddlePaddle writes as uint16: "
            f"{', '.join(name[:MAX_NAME_LENGTH] for name in bfloat16[:MAX_NAMES])}",
            where,
            "write them as float32 with PaddlePaddle: "
            'paddle.save({name: value.astype("float32") for name, value in '
            'model.state_dict().items()}, "weights.pdparams")',
        )
    return arrays


def _is_table_of_names(value: object) -> bool:
    """True for a dict of texts by texts."""
    if not isinstance(value, Mapping):
        return False
    return all(isinstance(text, str) for pair in value.items() for text in pair)


def _joined(name: str, description: object, arrays: dict[object, object], where: str) -> Tensor:
    """Return an array that is in the file as slices, and remove these from ``arrays``."""
    if not isinstance(description, Mapping):
        raise _damaged(name, where)
    shape, names = description.get("OriginShape"), description.get("slices")
    if not isinstance(shape, tuple | list) or not isinstance(names, tuple | list):
        raise _damaged(name, where)
    slices = [arrays.pop(slice_name, None) for slice_name in names]
    tensors = [value for value in slices if isinstance(value, Tensor) and value.ndim == 1]
    if not tensors or len(tensors) != len(slices):
        raise _damaged(name, where)
    try:
        return torch.cat(tensors).reshape([int(size) for size in shape])
    except (RuntimeError, TypeError, ValueError) as error:
        raise _damaged(name, where) from error


def _damaged(name: str, where: str) -> WeightsError:
    return WeightsError(
        f"{name[:MAX_NAME_LENGTH]!r} is cut into slices, and they are not complete",
        where,
        "copy or download the file again",
    )
