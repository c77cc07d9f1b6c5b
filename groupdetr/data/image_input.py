"""Any image that a user passes, as the RGB image that a detector sees.

A path, a PIL image, an array and a tensor of the same image give the same pixels. What an image of
unusual shape or values means is never guessed: it is an error that names what to pass.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from groupdetr.data.findings import Finding, RefusedError
from groupdetr.data.image_decoding import PixelValueError, load_image, to_bytes, upright_rgb
from groupdetr.data.wrong_inputs import wrong_image
from groupdetr.errors import DataError, UsageError
from groupdetr.files.downloads import MAX_IMAGE_BYTES, downloaded, is_address
from groupdetr.files.missing import as_typed

ImageInput = str | os.PathLike[str] | Image.Image | NDArray[np.generic] | Tensor

# The number of channels -> Pillow's mode: grey, grey and opacity, colours, colours and opacity.
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_KNOWN_KINDS = (
    "pass a path or an address, a PIL image, an array [H,W,3] or [H,W], or a tensor [3,H,W], or a "
    "list of them"
)
_KNOWN_VALUES = (
    "pass the image before any normalisation, with finite values from 0 to 1, 0 to 255 or 0 to "
    "65535"
)


def is_one_image(images: object) -> bool:
    """True if an argument stands for one image, and not for several ones."""
    if isinstance(images, str | bytes | os.PathLike | Image.Image | np.ndarray | Tensor):
        return True
    # A dictionary would be read as its keys, and an open file as its lines.
    return isinstance(images, Mapping) or hasattr(images, "read") or not hasattr(images, "__iter__")


def to_rgb(image: ImageInput) -> Image.Image:
    """Return any image as RGB of 8 bits, a copy.

    A text that begins with http:// or https:// is the address of an image, which is downloaded.
    A file and a PIL image are rotated according to their EXIF orientation. Transparent pixels are
    white. An array is [H,W] or [H,W,C], a tensor [H,W] or [C,H,W], with 1 to 4 channels: grey or
    RGB, and an opacity. Values are scaled as `to_bytes` does. Arrays of 16 bits with several
    channels keep their higher bytes, as Pillow does with such files.

    `DataError` for a file that cannot be read, `UsageError` for what is not an image.
    """
    if isinstance(image, str | os.PathLike):
        path = os.fsdecode(image)
        if not path:
            raise UsageError("an empty path is not an image", remedy=_KNOWN_KINDS)
        if is_address(path) and not os.path.exists(path):
            with downloaded(path, MAX_IMAGE_BYTES) as file:
                return _from_file(file, as_typed(path))
        return _from_file(Path(path), path)
    if isinstance(image, Image.Image):
        return _from_pil(image)
    if isinstance(image, np.ndarray):
        return _from_array(image, f"an array of {image.dtype} {image.shape}")
    if isinstance(image, Tensor):
        return _from_tensor(image)
    raise _not_an_image(image)


def _from_file(file: Path, named: str) -> Image.Image:
    """Return the image of a file. ``named`` is what the user calls it: its path or its address."""
    try:
        return load_image(file)
    except RefusedError as error:
        if error.finding.code == "value-range":  # It is an image, and its remedy is known.
            finding = error.finding
            raise RefusedError(Finding(finding.code, named, finding.record, finding.what)) from None
        raise wrong_image(file, error, named) from error


def _not_an_image(value: object) -> UsageError:
    """Return the error for a value of another type."""
    kind = type(value).__name__
    what = "None is not an image" if value is None else f"a value of type {kind} is not an image"
    remedy = _KNOWN_KINDS
    if value is None:
        remedy = "check that the file was read: cv2.imread returns None for one that it cannot read"
    elif isinstance(value, bytes | bytearray | memoryview):
        remedy = "decode it first: PIL.Image.open(io.BytesIO(content))"
    elif hasattr(value, "read"):
        remedy = "decode it first: PIL.Image.open(file)"
    return UsageError(what, remedy=remedy)


def _from_pil(image: Image.Image) -> Image.Image:
    file = str(getattr(image, "filename", ""))
    if 0 in image.size:
        raise UsageError(f"a PIL image of size {image.size} has no pixels", file, _KNOWN_KINDS)
    try:
        return upright_rgb(image)
    except PixelValueError as error:
        what = f"a PIL image of mode {image.mode} cannot be used: {error}"
        raise UsageError(what, file, _KNOWN_VALUES) from None
    except Exception as error:  # Pillow's plugins raise any exception on broken bytes
        what = f"a PIL image of mode {image.mode} cannot be decoded ({error})"
        raise DataError(what, file, "open the file again, or convert the image to RGB") from error


def _from_tensor(tensor: Tensor) -> Image.Image:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.is_nested:  # It has no shape.
        raise UsageError(f"a nested tensor of {dtype} is not an image", remedy=_KNOWN_KINDS)
    kind = f"a tensor of {dtype} {tuple(tensor.shape)}"
    try:
        tensor = tensor.detach().cpu()
        # NumPy has no such type.
        array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    except (TypeError, RuntimeError) as error:  # sparse, quantised, without memory, and so on
        raise UsageError(f"{kind} is not an image ({error})", remedy=_KNOWN_KINDS) from error
    if array.ndim == 3:
        if array.shape[0] not in _MODES and array.shape[2] in _MODES:
            raise UsageError(f"{kind} has its channels last", remedy="pass tensor.permute(2, 0, 1)")
        array = array.transpose(1, 2, 0)
    return _from_array(array, kind, "tensor[:3]")


def _from_array(
    array: NDArray[np.generic], kind: str, first_channels: str = "array[..., :3]"
) -> Image.Image:
    """Return the image of an array [H,W] or [H,W,C]. ``kind`` describes it for messages.

    ``first_channels`` is the expression of its first three channels.
    """
    if array.ndim == 4:
        raise UsageError(f"{kind} is not one image", remedy="pass several images as a list of them")
    if array.ndim not in (2, 3) or array.dtype.kind not in "buif":
        raise UsageError(f"{kind} is not an image", remedy=_KNOWN_KINDS)
    if array.size == 0:
        raise UsageError(f"{kind} has no pixels", remedy=_KNOWN_KINDS)
    num_channels = 1 if array.ndim == 2 else array.shape[2]
    if num_channels not in _MODES:
        if array.shape[0] in _MODES:
            what, remedy = f"{kind} has its channels first", "pass array.transpose(1, 2, 0)"
        else:
            what, remedy = f"{kind} has {num_channels} channels", f"choose some: {first_channels}"
        raise UsageError(what, remedy=remedy)
    if num_channels > 1 and array.dtype.kind == "u" and array.dtype.itemsize == 2:
        array = array.astype(np.uint16) >> np.uint16(8)  # as Pillow reads such files
        array = array.astype(np.uint8)
    try:
        pixels = to_bytes(array)
    except PixelValueError as error:
        raise UsageError(f"{kind} cannot be used: {error}", remedy=_KNOWN_VALUES) from None
    if num_channels == 1:
        pixels = pixels.reshape(array.shape[:2])
    image = Image.fromarray(np.ascontiguousarray(pixels))
    assert image.mode == _MODES[num_channels]
    return upright_rgb(image)
