"""The authors' Conditional DETR code, run from a checkout on this machine; none of it is part of this repository."""

from __future__ import annotations

import importlib
import os
import re
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

REPOSITORY = os.environ.get("GROUPDETR_CONDITIONAL_DETR_REPO", "")
HAS_GROUPS = REPOSITORY and "group_detr" in Path(REPOSITORY, "main.py").read_text()
SHARP = 3.0  # how much more than at the start queries tell keys apart
PACKAGES = ("main", "models", "util", "datasets", "engine")  # what the checkout calls its modules


def without_download(*, pretrained: bool, **options: Any) -> nn.Module:
    del pretrained  # the argument is gone from torchvision, and the weights come later
    return torchvision.models.resnet.resnet50(**options)


@contextmanager
def checkout() -> Iterator[None]:
    """Their modules importable, on today's torch, and nothing of them left behind."""
    resnet50, before = torchvision.models.resnet50, set(sys.modules)
    # their test of torch's version takes 2.x for older than 1.9
    linear = torch.nn.modules.linear
    linear._LinearWithBias = linear.NonDynamicallyQuantizableLinear  # type: ignore[attr-defined]
    sys.modules["torch._overrides"] = torch.overrides
    torchvision.models.resnet50 = without_download
    sys.path.insert(0, REPOSITORY)
    try:
        yield
    finally:
        sys.path.remove(REPOSITORY)
        torchvision.models.resnet50 = resnet50
        for name in set(sys.modules) - before:
            if name.split(".")[0] in PACKAGES:
                del sys.modules[name]


def build(num_groups: int, dilated: bool) -> tuple[nn.Module, nn.Module, Namespace]:
    """Their model without dropout and with weights everywhere, their criterion, and their arguments."""
    command = ["--device", "cpu", "--dropout", "0", "--num_queries", "100", *(["--dilation"] if dilated else [])]
    command += ["--group_detr", str(num_groups)] if HAS_GROUPS else []
    with checkout():
        args = importlib.import_module("main").get_args_parser().parse_args(command)
        model, criterion, _ = importlib.import_module("models").build_model(args)
    roughen(model)
    return model, criterion, args


@torch.no_grad()
def roughen(model: nn.Module) -> None:
    """Weights as training leaves them and no initialisation: norms that are not the identity, box heads that are not
    zero, and attention that is sharp, so that queries differ."""
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif "backbone" in name and value.ndim == 1:
            value.normal_(0.8, 0.1) if name.endswith("weight") else value.normal_(0, 0.03)
        elif "backbone" not in name:
            value.add_(torch.randn_like(value), alpha=0.02)
        if name.endswith("in_proj_weight"):
            value.mul_(torch.tensor([SHARP, SHARP, 1 / SHARP]).repeat_interleave(len(value) // 3)[:, None])
        elif re.search(r"[sc]a_q.*weight|ca_v.*weight", name):
            value.mul_(SHARP)
        elif "sa_v_proj.weight" in name:
            value.div_(SHARP)


def nested(images: Any) -> Any:
    """Our images as theirs."""
    with checkout():
        return importlib.import_module("util.misc").NestedTensor(images.pixels, images.padding)


def losses(criterion: nn.Module, outputs: dict[str, Any], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Their weighted losses under our names: theirs count layers from 0 and leave the last one without a number."""
    names = {"loss_ce": "focal", "loss_bbox": "l1", "loss_giou": "giou"}
    found, last = criterion(outputs, targets), len(outputs["aux_outputs"])
    ours = {}
    for name, weight in criterion.weight_dict.items():
        term, _, layer = name.replace("loss_", "").partition("_")
        ours[f"layer{layer or last}/{names['loss_' + term]}"] = weight * found[name]
    return ours
