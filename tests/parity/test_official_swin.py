"""Our Swin-L equals that of the authors' DINO for any size of images.

Runs if the environment variable GROUPDETR_DINO_REPO names a checkout of
github.com/IDEA-Research/DINO.
"""

from __future__ import annotations

import importlib
import os

import pytest
import torch
from torch import Tensor, nn

from groupdetr.checkpoints.layout import rename
from groupdetr.modeling.backbones.backbone import Backbone
from groupdetr.modeling.backbones.swin import PaddedBlock, swin_large
from groupdetr.modeling.backbones.swin_names import DINO_SWIN

from .official import checkout

pytestmark = pytest.mark.slow
REPOSITORY = os.environ.get("GROUPDETR_DINO_REPO", "")
# A window has 96, 192 and 384 pixels in stages 1 to 3.
SIZES = {
    "no multiple of a patch": (250, 391),
    "less than a window of stage 1": (70, 45),
    "odd maps": (420, 360),
    "whole windows": (384, 384),
}


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    if not REPOSITORY:
        pytest.skip("GROUPDETR_DINO_REPO does not name a checkout")
    torch.manual_seed(0)
    with checkout(REPOSITORY):
        swin = importlib.import_module("models.dino.swin_transformer")
        network = swin.build_swin_transformer(
            "swin_L_384_22k", 384, out_indices=(1, 2, 3), dilation=False
        )
    roughen(network)
    network.eval()  # unlike that of other modules, it does not return the network
    return network


@torch.no_grad()
def roughen(network: nn.Module) -> None:
    """Change weights so that norms, position biases and attention have an effect."""
    for name, value in network.named_parameters():
        if value.ndim == 1 and "norm" in name and name.endswith("weight"):
            value.normal_(0.8, 0.2)
        elif value.ndim == 1:
            value.normal_(0, 0.1)
        elif name.endswith("relative_position_bias_table"):
            value.normal_(0, 1)
        elif name.endswith("qkv.weight"):
            value.mul_(1.5)


@pytest.fixture(scope="module")
def ours(theirs: nn.Module) -> Backbone:
    backbone = swin_large(pretrained=False, recompute=False)
    backbone.load_state_dict(convert(theirs), assign=True)  # strict: all names must fit
    return backbone.eval()


def convert(theirs: nn.Module) -> dict[str, Tensor]:
    """Return their weights under our names, by the table for a detector's checkpoint."""
    state: dict[str, Tensor] = {}
    for name, value in theirs.state_dict().items():
        renamed = rename(f"backbone.0.{name}", DINO_SWIN)
        assert renamed is not None, name
        state |= {our_name.removeprefix("backbone."): value for our_name in renamed.names}
    return state


def test_the_table_has_all_355_entries(theirs: nn.Module) -> None:
    entries = theirs.state_dict()
    assert len(entries) == 355
    dropped = [name for name in entries if "relative_position_index" in name]
    assert len(convert(theirs)) == 355 - len(dropped) == 331


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_maps_are_theirs(theirs: nn.Module, ours: Backbone, size: tuple[int, int]) -> None:
    pixels = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, maps = theirs.forward_raw(pixels), ours(pixels)  # type: ignore[operator]
    assert [x.shape for x in maps] == [x.shape for x in expected]
    assert [x.shape[1] for x in maps] == ours.channels == [384, 768, 1536]
    differences = [(a - b).abs().max().item() for a, b in zip(maps, expected)]
    assert all(x.std() > 0.1 for x in expected)
    print(f"{size}: stages 1 to 3 differ by {', '.join(f'{d:.1e}' for d in differences)}")
    assert max(differences) < 1e-4


def test_timms_order_of_shift_and_padding_would_be_noticed(
    theirs: nn.Module, ours: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = torch.randn(1, 3, 250, 391, generator=torch.Generator().manual_seed(1))
    monkeypatch.delattr(PaddedBlock, "_attn")
    with torch.no_grad():
        expected, maps = theirs.forward_raw(pixels), ours(pixels)  # type: ignore[operator]
    assert all((a - b).abs().max() > 0.1 for a, b in zip(maps, expected))
