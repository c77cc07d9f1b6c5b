"""Swin Transformers take images of any size; Swin-L is the published one in size, and starts from published files."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor

from groupdetr.errors import WeightsError
from groupdetr.modeling.backbones.backbone import Backbone
from groupdetr.modeling.backbones.pretrained import fill, read
from groupdetr.modeling.backbones.pretrained_layouts import OFFICIAL_SWIN, TIMM_SWIN
from groupdetr.modeling.backbones.swin import OPTIONS, swin, swin_large

SMALL = {
    "img_size": 64,
    "embed_dim": 16,
    "depths": (2, 2, 2, 2),
    "num_heads": (1, 2, 2, 4),
    "window_size": 3,
}


def network(seed: int = 0) -> SwinTransformer:
    torch.manual_seed(seed)
    return SwinTransformer(**{**SMALL, **OPTIONS})


def small(recompute: bool = False) -> Backbone:
    return swin(network(), recompute)


def pixels(*size: int) -> Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("height", "width"), [(96, 64), (61, 90), (13, 5)])
def test_maps_of_any_size_have_strides_8_to_32(height: int, width: int) -> None:
    backbone = small().eval()
    maps = backbone(pixels(height, width))
    assert backbone.channels == [32, 64, 128]
    for x, channels, stride in zip(maps, backbone.channels, (8, 16, 32), strict=True):
        assert x.shape == (2, channels, -(-height // stride), -(-width // stride))
        assert x.mean(1).abs().max() < 1e-5  # each has its norm
    assert maps[0].is_contiguous(memory_format=torch.channels_last)


def test_the_edge_that_is_padded_inside_is_that_of_zeros_outside() -> None:
    """To the multiple of a patch; windows are padded after the norm, which no image can say."""
    backbone = small().eval()
    inside, outside = (
        backbone(pixels(62, 91)),
        backbone(torch.nn.functional.pad(pixels(62, 91), (0, 1, 0, 2))),
    )
    assert all(torch.equal(a, b) for a, b in zip(inside, outside))


def test_recomputing_gives_the_same_gradients() -> None:
    """With its random paths, too."""
    plain, frugal = small().train(), small(recompute=True).train()
    frugal.load_state_dict(plain.state_dict())
    losses = []
    for backbone in (plain, frugal):
        torch.manual_seed(3)
        losses.append(sum(x.square().sin().sum() for x in backbone(pixels(61, 90))))
        losses[-1].backward()
    assert torch.equal(*losses)
    for (name, a), b in zip(plain.named_parameters(), frugal.parameters()):
        assert a.grad is not None, name
        assert torch.allclose(a.grad, b.grad, atol=1e-5), name


def test_swin_large_is_that_of_the_spec() -> None:
    with torch.device("meta"):
        backbone = swin_large(pretrained=False, recompute=True)
    assert backbone.channels == [384, 768, 1536]
    assert sum(p.numel() for p in backbone.parameters()) == 195_200_820
    assert all(p.requires_grad for p in backbone.parameters())
    rates = [
        getattr(block.drop_path2, "drop_prob", 0.0)
        for stage in backbone.network.layers
        for block in stage.blocks
    ]  # type: ignore[union-attr]
    assert rates == pytest.approx([0.2 * i / 23 for i in range(24)])


def official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As the authors' classifiers are saved, with all that we drop."""
    theirs = {}
    for name, value in state.items():
        parts = name.split(".")
        if "downsample" in parts:
            parts[1] = str(int(parts[1]) - 1)
        theirs[".".join(parts)] = value
    extra = {
        "layers.0.blocks.1.attn_mask": 1,
        "layers.0.blocks.0.attn.relative_position_index": 1,
        "head.weight": 1,
    }
    return {**theirs, **dict.fromkeys(extra, torch.ones(1))}


@pytest.mark.parametrize("wrapped", [False, True])
def test_files_of_the_authors_and_of_timm_are_read(wrapped: bool, tmp_path: Path) -> None:
    source = network(seed=5)
    state = source.state_dict()
    saved = {"model": official(state)} if wrapped else {**state, "head.fc.weight": torch.ones(1)}
    torch.save(saved, tmp_path / "swin.pth")
    target = network(seed=6)
    fill(target, read(str(tmp_path / "swin.pth"), (OFFICIAL_SWIN, TIMM_SWIN)))
    assert all(torch.equal(value, state[name]) for name, value in target.state_dict().items())
    maps = [
        swin(copy.deepcopy(x), recompute=False).eval()(pixels(61, 90)) for x in (source, target)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*maps))


def test_another_file_is_refused(tmp_path: Path) -> None:
    torch.save({"bn1.weight": torch.ones(1)}, tmp_path / "resnet.pth")
    with pytest.raises(
        WeightsError, match="these are not the weights of the authors' Swin Transformer or timm's"
    ):
        swin_large(str(tmp_path / "resnet.pth"), recompute=False)
