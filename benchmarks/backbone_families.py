"""Which of timm's networks can be the backbone of a detector? A table of all its families.

    python benchmarks/backbone_families.py [--families convnext,resnet] > table.md

Nothing is downloaded: all weights are random. Every network of timm is examined on the meta device,
which computes shapes only. Of every family the smallest network that serves is then run, forward
and backward, on images whose sides are no multiples of its strides.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections import defaultdict
from dataclasses import dataclass
from typing import Annotated

import measure
import timm
import torch
import tyro

from groupdetr.errors import UsageError
from groupdetr.modeling.backbones.timm_backbone import timm_backbone
from groupdetr.modeling.backbones.timm_structure import examine

ALL_MAPS = (8, 16, 32)  # what DINO and Deformable DETR need by default
HEADER = ["family", "tried", "serves strides", "sides", "DC5", "members that serve 8, 16, 32"]


@dataclass
class Options:
    # names of timm's modules, separated by commas; all by default
    families: Annotated[str, tyro.conf.arg(metavar="NAMES")] = ""
    run: bool = True  # also run one network of every family
    height: int = 107  # of the images
    width: int = 150
    device: str = "cpu"  # of the networks that run
    quick: bool = False  # two families


QUICK = {"families": "resnet,vgg"}


@dataclass
class Member:
    """What a network of timm serves."""

    name: str
    parameters: int
    served: tuple[int, ...]  # strides of its maps; () if it does not serve
    multiple: int  # images are padded until their sides are multiples of it
    reason: str  # why it does not serve


def list_families() -> dict[str, list[str]]:
    """Return the names of all networks of timm by the module that defines them."""
    families = defaultdict(list)
    for name in timm.list_models():
        module = timm.model_entrypoint(name).__module__
        families[module.rpartition(".")[2]].append(name)
    return dict(sorted(families.items()))


def examine_member(name: str) -> Member:
    """Examine the three maps that most detectors need, or else those that the network has."""
    with torch.device("meta"):
        network = timm.create_model(name, num_classes=0)
    parameters = sum(p.numel() for p in network.parameters())
    own_strides = sorted({int(entry["reduction"]) for entry in network.feature_info})
    reason = ""
    for strides in (ALL_MAPS, tuple(stride for stride in own_strides if stride > 4)):
        try:
            multiple = examine(name, strides).multiple
        except UsageError as error:
            reason = error.what
        else:
            return Member(name, parameters, strides, multiple, "")
    print(reason, file=sys.stderr)
    return Member(name, parameters, (), 1, in_short(reason))


def in_short(reason: str) -> str:
    if "sizes 1/stride" in reason:
        return "maps of other sizes"
    if "meta tensors" in reason:
        return "shapes depend on values"
    return "one image size"


def has_dilated_form(name: str) -> bool:
    try:
        examine(name, (16,), dilated=True)
    except UsageError:
        return False
    return True


def run_member(member: Member, options: Options) -> None:
    """Run the network forward and backward; `AssertionError` if a map or a gradient is missing."""
    strides = member.served
    backbone = timm_backbone(member.name, False, strides).train().to(options.device)
    maps = backbone(torch.randn(2, 3, options.height, options.width, device=options.device))
    for x, channels, stride in zip(maps, backbone.channels, strides, strict=True):
        rows, columns = -(-options.height // stride), -(-options.width // stride)
        assert x.shape == (2, channels, rows, columns), (member.name, x.shape)
        assert x.isfinite().all(), member.name
    torch.stack([x.square().mean() for x in maps]).sum().backward()
    for name, parameter in backbone.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, (member.name, name)


def best(members: list[Member]) -> Member:
    """Return the smallest of the networks that serve most."""
    return min(members, key=lambda m: (m.served != ALL_MAPS, -len(m.served), m.parameters, m.name))


def row_of(family: str, members: list[Member]) -> list[str]:
    """Return the row of a family: its smallest network that serves most, and how many serve."""
    member = best(members)
    num_serving = sum(m.served == ALL_MAPS for m in members)
    served = ", ".join(str(stride) for stride in member.served) or f"no: {member.reason}"
    sides = "any" if member.multiple == 1 else f"padded to {member.multiple}"
    return [
        family,
        f"`{member.name}`",
        served,
        sides if member.served else "",
        "yes" if member.served and has_dilated_form(member.name) else "",
        f"{num_serving} of {len(members)}",
    ]


def main(options: Options) -> None:
    warnings.simplefilter("ignore")  # of networks that timm has renamed
    families = list_families()
    chosen = options.families.split(",") if options.families else list(families)
    print("| " + " | ".join(HEADER) + " |")
    print("|" + "---|" * len(HEADER))
    for family in chosen:
        start = time.perf_counter()
        members = [examine_member(name) for name in families[family]]
        row = row_of(family, members)
        if options.run and best(members).served:
            run_member(best(members), options)
        print("| " + " | ".join(row) + " |", flush=True)
        print(f"{family}: {time.perf_counter() - start:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main(measure.parse(Options, QUICK))
