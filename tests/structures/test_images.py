"""Images are checked when they are created."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from groupdetr.structures.images import Images


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], r"one or more tensors \[3,H,W\], and it is empty"),
        (None, r"images must be a list of one or more tensors \[3,H,W\], not NoneType"),
        (torch.rand(3, 8, 8), r"an image must be \[3,H,W\], not \(8, 8\)"),
        ([torch.rand(8, 8, 3)], r"an image must be \[3,H,W\], not \(8, 8, 3\)"),
        ([torch.rand(3, 8, 8).numpy()], "an image must be a tensor, not ndarray"),
        (["photo.jpg"], "an image must be a tensor, not str"),
    ],
)
def test_other_lists_of_images_are_refused(images: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Images.from_list(images)


@pytest.mark.parametrize(
    ("pixels", "padding", "message"),
    [
        (torch.rand(3, 8, 8), torch.zeros(8, 8), r"pixels must be \[B,3,H,W\], not \(3, 8, 8\)"),
        (torch.rand(1, 1, 8, 8), torch.zeros(1, 8, 8), r"pixels must be \[B,3,H,W\]"),
        (torch.rand(1, 3, 8, 8), None, "padding must be a tensor, not NoneType"),
        (torch.rand(1, 3, 8, 8), torch.zeros(1, 8, 8), "padding must be bool"),
        (torch.rand(1, 3, 8, 8), torch.zeros(1, 8, 9).bool(), r"padding has shape \(1, 8, 9\)"),
    ],
)
def test_other_pixels_and_paddings_are_refused(pixels: Any, padding: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Images(pixels, padding)
