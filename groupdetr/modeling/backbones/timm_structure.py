"""What a network of timm offers to a detector: its feature maps, and what they depend on.

The network is created and run on the meta device, which computes shapes only. That needs no memory
and little time, and a network that cannot serve is refused before its weights are downloaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any

import timm
import torch
from timm.layers import Conv2dSame, ScaledStdConv2dSame, StdConv2dSame
from timm.layers.pool2d_same import AvgPool2dSame, MaxPool2dSame
from torch import Tensor, nn

from groupdetr.errors import UsageError
from groupdetr.modeling.backbones.timm_network import TimmModel

# Layers whose padding depends on the size of the map
SAME_PADDING = (Conv2dSame, StdConv2dSame, ScaledStdConv2dSame, AvgPool2dSame, MaxPool2dSame)
STEM_STRIDE = 2  # of the map after the stem, if a network has one
DILATED_STRIDE = 16  # of the last stage with dilated convolutions
# Options with which timm's networks that are made for one image size take images of other sizes.
ANY_SIZE_OPTIONS: tuple[dict[str, Any], ...] = (
    {"strict_img_size": False},
    {"dynamic_img_size": True},
    {},
)
SUITABLE = (
    "choose a backbone with maps of strides 4, 8, 16 and 32, such as --backbone "
    "convnext_tiny.fb_in22k, resnet101.tv_in1k or swin_tiny_patch4_window7_224.ms_in22k; "
    "docs/backbones.md lists them"
)


@dataclass(frozen=True)
class TimmStructure:
    """How timm's network computes the feature maps that a detector needs.

    A map of stride s has H/s rows and W/s columns, rounded up, for images whose sides are multiples
    of ``multiple``.
    """

    options: dict[str, Any]  # of `timm.create_model`
    # The constants, for red, green, blue in [0,1], that the images of its training had
    mean: tuple[float, ...]
    std: tuple[float, ...]
    indices: tuple[int, ...]  # of the maps, among all maps of the network
    channels: tuple[int, ...]  # of the maps
    multiple: int  # 1 if images of all sizes are taken as they are
    used: frozenset[str]  # names of the parameters that the maps depend on
    # Names of the parameters of the stem and of every stage. The stem ends at the map of stride 2,
    # or where there is none, at the module of the first stage. Every other map ends a stage.
    stages: tuple[frozenset[str], ...]


@cache
def examine(name: str, strides: tuple[int, ...], dilated: bool = False) -> TimmStructure:
    """Return how timm's network ``name`` computes maps of these strides.

    With ``dilated``, the convolutions of its last stage are dilated, so that it keeps stride 16.
    `UsageError` if timm does not know the name, or if the network lacks a stride, needs images of
    one size, or has no dilated form.
    """
    require_known(name)
    network, options = _create_on_meta(name, dilated)
    if not hasattr(network, "forward_intermediates"):
        raise UsageError(f"{name} has no feature maps", f"timm's {name}", SUITABLE)
    all_strides = [int(entry["reduction"]) for entry in network.feature_info]
    if dilated and max(all_strides) > DILATED_STRIDE:
        raise _not_dilated(name)
    indices = _select(name, all_strides, strides)
    channels = tuple(int(network.feature_info[index]["num_chs"]) for index in indices)

    multiple, maps = _run(network, name, max(all_strides), indices, strides, channels)
    config = network.pretrained_cfg
    return TimmStructure(
        options,
        tuple(config["mean"]),
        tuple(config["std"]),
        indices,
        channels,
        multiple,
        _names_of_inputs([maps[index] for index in indices], _trained(network)),
        _stages(network, maps, all_strides),
    )


def require_known(name: str) -> None:
    """Raise `UsageError` unless timm knows this architecture and this tag of its weights."""
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        similar = get_close_matches(architecture, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(similar)}? " if similar else ""
        raise UsageError(
            f"timm has no network {name!r}",
            f"timm {timm.__version__}",
            f"{hint}timm.list_models() returns all names",
        )
    pretrained_names = timm.list_pretrained(f"{architecture}.*")
    if tag and name not in pretrained_names:
        available = ", ".join(pretrained_names) or "none"
        raise UsageError(
            f"timm has no weights {tag!r} of {architecture}; it has {available}",
            f"timm {timm.__version__}",
            f"choose one of these names, or {architecture} for its default weights",
        )


def _create_on_meta(name: str, dilated: bool) -> tuple[TimmModel, dict[str, Any]]:
    """Return the network, without weights and in evaluation mode, and timm's options for it."""
    common: dict[str, Any] = {"num_classes": 0}
    if dilated:
        common["output_stride"] = DILATED_STRIDE
    config = timm.get_pretrained_cfg(name)
    is_for_one_size = config is not None and config.fixed_input_size
    for size_options in ANY_SIZE_OPTIONS if is_for_one_size else ({},):
        options = {**common, **size_options}
        try:
            with torch.device("meta"):
                return timm.create_model(name, **options).eval(), options
        except TypeError:  # the network does not have one of the options
            continue
        except (AssertionError, NotImplementedError) as error:
            if dilated:
                raise _not_dilated(name) from error
            raise
    raise _not_dilated(name)


def _not_dilated(name: str) -> UsageError:
    return UsageError(
        f"the last stage of {name} cannot keep stride {DILATED_STRIDE}",
        f"timm's {name}",
        "choose a ResNet, such as resnet101.tv_in1k, or a detector without dilation (DC5)",
    )


def _select(name: str, all_strides: Sequence[int], strides: Sequence[int]) -> tuple[int, ...]:
    """Return the index of the last map of every stride, from fine to coarse.

    `UsageError` if a stride has no map.
    """
    if list(strides) != sorted(set(strides)):
        raise UsageError(
            f"strides go from fine to coarse, unlike {_join(strides)}", remedy="set them in order"
        )
    last_index = {stride: index for index, stride in enumerate(all_strides)}
    if not last_index.keys() >= set(strides):
        raise UsageError(
            f"the detector needs feature maps of stride {_join(strides)}, and {name} has only maps "
            f"of stride {_join(last_index)}",
            f"timm's {name}",
            _other_strides(strides, list(last_index)) + SUITABLE,
        )
    return tuple(last_index[stride] for stride in strides)


def _other_strides(needed: Sequence[int], available: Sequence[int]) -> str:
    """Return how to use the maps that the network has.

    A detector of one map takes any. Deformable DETR and DINO compute the coarser maps that are
    missing from the last one.
    """
    usable = [stride for stride in available if stride >= needed[0]]
    if len(needed) == 1 or not usable:
        usable = [max(available)]
    setting = f"'strides=[{','.join(str(stride) for stride in usable)}]'"
    return f"use the maps that it has, if the detector allows it: --set {setting}; or "


def _join(strides: Iterable[int]) -> str:
    return ", ".join(str(stride) for stride in strides)


def _run(
    network: TimmModel,
    name: str,
    coarsest: int,
    indices: Sequence[int],
    strides: Sequence[int],
    channels: Sequence[int],
) -> tuple[int, list[Tensor]]:
    """Return the number that the sides of images must be multiples of, and all maps of an image.

    1 is tried first, unless it would shift the maps, and then the coarsest stride. Networks with a
    fixed size or number of attention windows may take multiples of the image size that they are
    made for.
    """
    attempts = [(coarsest, 5 * coarsest, 4 * coarsest)]
    if not _shifts_odd_maps(network):
        attempts.insert(0, (1, 5 * coarsest + 1, 4 * coarsest + 1))
    side = int(network.pretrained_cfg["input_size"][-1])
    if side % coarsest == 0:
        attempts.append((side, 2 * side, side))
    for multiple, height, width in attempts:
        pixels = torch.zeros(1, 3, height, width, device="meta")
        try:
            maps = network.forward_intermediates(pixels, output_fmt="NCHW", intermediates_only=True)
        except Exception as error:  # timm's networks refuse an image size in many ways
            reason = str(error).partition("\n")[0] or type(error).__name__
            continue
        expected = [
            (1, num_channels, -(-height // stride), -(-width // stride))
            for stride, num_channels in zip(strides, channels)
        ]
        if [maps[index].shape for index in indices] == expected:
            return multiple, maps
        reason = f"the maps of an image of {height}x{width} pixels do not have the sizes 1/stride"
    raise UsageError(
        f"{name} does not take images of all sizes: {reason}", f"timm's {name}", SUITABLE
    )


def _shifts_odd_maps(network: TimmModel) -> bool:
    """Return whether layers pad as TensorFlow's "SAME" does.

    Such a layer of stride 2 pads maps of even size at the right only, and maps of odd size at both
    sides, which shifts its output by half a cell. So images of different sizes, or an image alone
    and in a padded batch, would have objects at different places of the maps.
    """
    return any(
        isinstance(module, SAME_PADDING) and _largest(module.stride) > 1
        for module in network.modules()
    )


def _largest(stride: int | Sequence[int]) -> int:
    return stride if isinstance(stride, int) else max(stride)


def _trained(network: TimmModel) -> dict[str, nn.Parameter]:
    """Return the parameters by name, without those that timm itself does not train."""
    return {name: p for name, p in network.named_parameters() if p.requires_grad}


def _names_of_inputs(maps: Sequence[Tensor], parameters: dict[str, nn.Parameter]) -> frozenset[str]:
    """Return the names of those of the ``parameters`` that any of the maps depends on."""
    if not parameters:
        return frozenset()
    total = torch.stack([x.sum() for x in maps]).sum()
    gradients = torch.autograd.grad(
        total, list(parameters.values()), retain_graph=True, allow_unused=True
    )
    pairs = zip(parameters, gradients)
    return frozenset(name for name, gradient in pairs if gradient is not None)


def _stages(
    network: TimmModel, maps: Sequence[Tensor], all_strides: Sequence[int]
) -> tuple[frozenset[str], ...]:
    """Return the names of the parameters of the stem and of every stage, see `TimmStructure`."""
    remaining = _trained(network)
    stem: set[str] = set()
    stages: list[frozenset[str]] = []
    for x, stride in zip(maps, all_strides):
        names = _names_of_inputs([x], remaining)
        for name in names:
            del remaining[name]
        if stride <= STEM_STRIDE:
            stem |= names
        else:
            stages.append(names)
    if not stem:
        inside = network.feature_info[0]["module"] + "."
        stem = {name for name in stages[0] if not name.startswith(inside)}
        stages[0] -= stem
    return (frozenset(stem), *stages)
