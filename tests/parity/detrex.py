"""detrex's DINO, run from a checkout on this machine; none of it is part of this repository.

Of its code run the neck, the transformer, the heads and the forward pass that joins them. detectron2 is not needed:
the backbone is a ResNet-50 written here under detectron2's names.
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

VARIABLE = "GROUPDETR_DETREX_REPO"  # of the environment, that names a checkout
QUERIES = 100
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
)  # what they import and do not need here
PACKAGES = (
    "detrex",
    "detrex.modeling",
    "detrex.utils",
    "projects",
    "projects.dino",
    "projects.dino.modeling",
)  # whose __init__ would import all of detrex


def repository() -> Path | None:
    return Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None


@contextmanager
def checkout(path: Path) -> Iterator[None]:
    """Their modules importable, and nothing of them left behind."""
    before = dict(sys.modules)
    for name in PACKAGES:
        package = sys.modules[name] = ModuleType(name)
        package.__path__ = [str(path.joinpath(*name.split(".")))]
    sys.modules.update({name: mock.MagicMock() for name in UNUSED})
    sys.modules["detrex"]._C = None  # type: ignore[attr-defined]  # compiled: without it their layer would not exist
    try:
        sys.modules["detrex.utils"].inverse_sigmoid = importlib.import_module(
            "detrex.utils.misc"
        ).inverse_sigmoid  # type: ignore[attr-defined]
        yield
    finally:
        for name in set(sys.modules) - before.keys():
            if name.split(".")[0] in ("detrex", "projects", "detectron2", "fairscale"):
                del sys.modules[name]


class Conv(nn.Conv2d):
    """detectron2's: the norm is part of it."""

    def __init__(self, a: int, b: int, size: int, stride: int = 1) -> None:
        super().__init__(a, b, size, stride, size // 2, bias=False)
        self.norm = FrozenBatchNorm2d(b)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x))


class Block(nn.Module):
    def __init__(self, a: int, b: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (
            Conv(a, b // 4, 1),
            Conv(b // 4, b // 4, 3, stride),
            Conv(b // 4, b, 1),
        )
        self.shortcut = Conv(a, b, 1, stride) if a != b else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv3(self.conv2(self.conv1(x).relu()).relu())
        return (y + (x if self.shortcut is None else self.shortcut(x))).relu()


class ResNet50(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.ModuleDict({"conv1": Conv(3, 64, 7, 2)})
        widths = (64, 256, 512, 1024, 2048)
        for stage, depth in enumerate((3, 4, 6, 3)):
            a, b = widths[stage], widths[stage + 1]
            blocks = [
                Block(a if i == 0 else b, b, 2 if stage and i == 0 else 1) for i in range(depth)
            ]
            self.add_module(f"res{stage + 2}", nn.Sequential(*blocks))

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        x = self.res2(F.max_pool2d(self.stem["conv1"](pixels).relu(), 3, 2, 1))
        found = {"res3": self.res3(x)}
        found["res4"] = self.res4(found["res3"])
        return found | {"res5": self.res5(found["res4"])}


class Kept:
    """In place of a criterion: keeps what the detector says."""

    def __init__(self) -> None:
        self.weight_dict: dict[str, float] = {}

    def __call__(self, outputs: dict[str, Any], *others: Any) -> dict[str, Any]:
        del others
        self.outputs = outputs
        return {}


def build(path: Path) -> nn.Module:
    """As projects/dino/configs/models/dino_r50.py puts it together, with fewer queries."""
    with checkout(path):
        layers, neck, dino = (
            importlib.import_module(name)
            for name in ("detrex.layers", "detrex.modeling.neck", "projects.dino.modeling.dino")
        )
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
        criterion=Kept(),
        device="cpu",
    )


def said(model: nn.Module, images: Images) -> dict[str, Any]:
    """Its outputs. Only in training it heeds the padding; without objects it has no denoising queries then."""
    model.train()
    model.preprocess_image = lambda _: Namespace(tensor=images.pixels)  # type: ignore[assignment]
    with mock.patch.object(torch.Tensor, "cuda", lambda self: self):
        model([{"instances": nothing(size)} for size in sizes(images)])
    return model.criterion.outputs  # type: ignore[union-attr, return-value]


def sizes(images: Images) -> list[tuple[int, int]]:
    return [(int((~p[:, 0]).sum()), int((~p[0]).sum())) for p in images.padding]


def nothing(size: tuple[int, int]) -> Namespace:
    """An image without objects, as detectron2 describes it."""
    boxes = Namespace(tensor=torch.zeros(0, 4))
    found = Namespace(image_size=size, gt_classes=torch.zeros(0, dtype=torch.int64), gt_boxes=boxes)
    found.to = lambda _: found
    return found
