"""detrex's DINO, run from a checkout of its repository. None of it is part of this repository.

The neck, the transformer, the heads and the forward pass are detrex's code. detectron2 is not
needed: the backbone is a ResNet-50 that is written here, under detectron2's names.
"""

from __future__ import annotations

import importlib
import os
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d

from groupdetr.structures.images import Images

VARIABLE = "GROUPDETR_DETREX_REPO"  # environment variable with the path of a checkout
QUERIES = 100
# Modules that detrex imports and that are not needed here.
UNUSED = (
    "detectron2",
    "detectron2.modeling",
    "detectron2.structures",
    "detectron2.utils",
    "detectron2.utils.events",
    "detectron2.data",
    "detectron2.data.detection_utils",
    "fairscale",
    "fairscale.nn",
    "fairscale.nn.checkpoint",
)
# Packages whose __init__ would import all of detrex.
PACKAGES = (
    "detrex",
    "detrex.modeling",
    "detrex.utils",
    "projects",
    "projects.dino",
    "projects.dino.modeling",
)


def repository() -> Path | None:
    return Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None


@contextmanager
def checkout(path: Path) -> Iterator[None]:
    """Make their modules importable, and remove them again afterwards."""
    before = dict(sys.modules)
    for name in PACKAGES:
        package = sys.modules[name] = ModuleType(name)
        package.__path__ = [str(path.joinpath(*name.split(".")))]
    sys.modules.update({name: mock.MagicMock() for name in UNUSED})
    # Their layer imports its compiled kernel. Without this attribute it could not be imported.
    sys.modules["detrex"]._C = None  # type: ignore[attr-defined]
    try:
        misc = importlib.import_module("detrex.utils.misc")
        sys.modules["detrex.utils"].inverse_sigmoid = misc.inverse_sigmoid  # type: ignore[attr-defined]
        yield
    finally:
        for name in set(sys.modules) - before.keys():
            if name.split(".")[0] in ("detrex", "projects", "detectron2", "fairscale"):
                del sys.modules[name]


class Conv(nn.Conv2d):
    """detectron2's convolution, which owns its norm."""

    def __init__(self, in_channels: int, channels: int, size: int, stride: int = 1) -> None:
        super().__init__(in_channels, channels, size, stride, size // 2, bias=False)
        self.norm = FrozenBatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x))


class Block(nn.Module):
    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = Conv(in_channels, channels // 4, 1)
        self.conv2 = Conv(channels // 4, channels // 4, 3, stride)
        self.conv3 = Conv(channels // 4, channels, 1)
        has_shortcut = in_channels != channels
        self.shortcut = Conv(in_channels, channels, 1, stride) if has_shortcut else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv3(self.conv2(self.conv1(x).relu()).relu())
        return (y + (x if self.shortcut is None else self.shortcut(x))).relu()


class ResNet50(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.ModuleDict({"conv1": Conv(3, 64, 7, 2)})
        widths = (64, 256, 512, 1024, 2048)
        for stage, depth in enumerate((3, 4, 6, 3)):
            blocks = []
            for i in range(depth):
                in_channels = widths[stage] if i == 0 else widths[stage + 1]
                stride = 2 if stage > 0 and i == 0 else 1
                blocks.append(Block(in_channels, widths[stage + 1], stride))
            self.add_module(f"res{stage + 2}", nn.Sequential(*blocks))

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        x = self.res2(F.max_pool2d(self.stem["conv1"](pixels).relu(), 3, 2, 1))
        features = {"res3": self.res3(x)}
        features["res4"] = self.res4(features["res3"])
        features["res5"] = self.res5(features["res4"])
        return features


class RecordingCriterion:
    """Replaces a criterion, and keeps the outputs of the detector."""

    def __init__(self) -> None:
        self.weight_dict: dict[str, float] = {}

    def __call__(self, outputs: dict[str, Any], *others: Any) -> dict[str, Any]:
        self.outputs = outputs
        return {}


def build(path: Path) -> nn.Module:
    """Build the model of projects/dino/configs/models/dino_r50.py with fewer queries."""
    with checkout(path):
        layers = importlib.import_module("detrex.layers")
        neck = importlib.import_module("detrex.modeling.neck")
        dino = importlib.import_module("projects.dino.modeling.dino")
        parts = importlib.import_module("projects.dino.modeling.dino_transformer")
    widths = {f"res{stage}": layers.ShapeSpec(channels=256 << stage - 2) for stage in (3, 4, 5)}
    sizes = {
        "feedforward_dim": 2048,
        "attn_dropout": 0.0,
        "ffn_dropout": 0.0,
        "use_checkpoint": False,
    }
    transformer = parts.DINOTransformer(
        parts.DINOTransformerEncoder(**sizes), parts.DINOTransformerDecoder(**sizes), 4, QUERIES
    )
    return dino.DINO(
        backbone=ResNet50(),
        position_embedding=layers.PositionEmbeddingSine(
            128, temperature=10000, normalize=True, offset=-0.5
        ),
        neck=neck.ChannelMapper(
            widths, [*widths], 256, kernel_size=1, norm_layer=nn.GroupNorm(32, 256), num_outs=4
        ),
        transformer=transformer,
        embed_dim=256,
        num_classes=80,
        num_queries=QUERIES,
        criterion=RecordingCriterion(),
        device="cpu",
    )


def predict(model: nn.Module, images: Images) -> dict[str, Any]:
    """Return the outputs of their model.

    It regards padding in training only. There are no denoising queries, because there are no
    objects.
    """
    model.train()
    model.preprocess_image = lambda _: Namespace(tensor=images.pixels)  # type: ignore[assignment]
    with mock.patch.object(torch.Tensor, "cuda", lambda self: self):
        model([{"instances": no_objects(size)} for size in unpadded_sizes(images)])
    return model.criterion.outputs  # type: ignore[union-attr, return-value]


def unpadded_sizes(images: Images) -> list[tuple[int, int]]:
    """Return height and width of every image without its padding."""
    sizes = []
    for padding in images.padding:
        height, width = (~padding[:, 0]).sum(), (~padding[0]).sum()
        sizes.append((int(height), int(width)))
    return sizes


def no_objects(size: tuple[int, int]) -> Namespace:
    """Return the description of an image without objects, as detectron2's `Instances`."""
    boxes = Namespace(tensor=torch.zeros(0, 4))
    labels = torch.zeros(0, dtype=torch.int64)
    instances = Namespace(image_size=size, gt_classes=labels, gt_boxes=boxes)
    instances.to = lambda _: instances
    return instances
