"""Swin Transformers take images of any size; Swin-L has the published sizes and loads its files."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor
from torch.nn import functional as F

from groupdetr.errors import WeightsError
from groupdetr.modeling.backbones.backbone import Backbone
from groupdetr.modeling.backbones.pretrained import load_all_weights, read_backbone_file
from groupdetr.modeling.backbones.pretrained_layouts import OFFICIAL_SWIN, TIMM_SWIN
from groupdetr.modeling.backbones.swin import OPTIONS, swin, swin_large

from .graphs import expect_equal_graph

SMALL: dict[str, Any] = {
    "img_size": 64,
    "embed_dim": 16,
    "depths": (2, 2, 2, 2),
    "num_heads": (1, 2, 2, 4),
    "window_size": 3,
}


def small_network(seed: int = 0, depths: tuple[int, ...] = SMALL["depths"]) -> SwinTransformer:
    torch.manual_seed(seed)
    return SwinTransformer(**{**SMALL, **OPTIONS, "depths": depths})


def small_backbone(recompute: bool = False) -> Backbone:
    return swin(small_network(), recompute)


def random_pixels(height: int, width: int) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("height", "width"), [(96, 64), (61, 90), (13, 5)])
def test_maps_of_any_size_have_strides_8_to_32(height: int, width: int) -> None:
    backbone = small_backbone().eval()
    maps = backbone(random_pixels(height, width))
    assert backbone.channels == [32, 64, 128]
    for x, channels, stride in zip(maps, backbone.channels, (8, 16, 32), strict=True):
        assert x.shape == (2, channels, -(-height // stride), -(-width // stride))
        assert x.mean(1).abs().max() < 1e-5, "every map has a layer norm"
    assert maps[0].is_contiguous(memory_format=torch.channels_last)


def test_a_recorded_graph_takes_images_with_and_without_padding() -> None:
    """Whole windows are the maps of all stages for 192 pixels, and those of some for 130."""
    # The second block of a stage has shifted windows. Recording takes seconds for every block.
    backbone = swin(small_network(depths=(2, 1, 1, 1)), recompute=False)
    expect_equal_graph(backbone.network.eval(), [(100, 140), (192, 192), (130, 192)])


def test_images_are_padded_with_zeros_to_whole_patches() -> None:
    """Padding to whole windows comes after a norm, so zeros in the image cannot replace it."""
    backbone = small_backbone().eval()
    pixels = random_pixels(62, 91)
    actual = backbone(pixels)
    expected = backbone(F.pad(pixels, (0, 1, 0, 2)))
    assert all(torch.equal(a, b) for a, b in zip(actual, expected))


def test_taking_over_a_network_keeps_its_parameters_and_draws_no_random_numbers() -> None:
    network = small_network()
    state = {name: value.clone() for name, value in network.state_dict().items()}
    random_state = torch.get_rng_state()
    blocks = swin(network, recompute=False).network.layers
    assert torch.equal(torch.get_rng_state(), random_state)
    for name, value in blocks.state_dict().items():
        assert torch.equal(value, state[f"layers.{name}"]), name


def test_recomputing_gives_the_same_gradients() -> None:
    """This holds with stochastic depth, too."""
    plain, recomputing = small_backbone().train(), small_backbone(recompute=True).train()
    recomputing.load_state_dict(plain.state_dict())
    losses = []
    for backbone in (plain, recomputing):
        torch.manual_seed(3)
        loss = sum(x.square().sin().sum() for x in backbone(random_pixels(61, 90)))
        loss.backward()
        losses.append(loss)
    assert torch.equal(*losses)
    for (name, a), b in zip(plain.named_parameters(), recomputing.parameters()):
        assert a.grad is not None, name
        assert torch.allclose(a.grad, b.grad, atol=1e-5), name


def test_swin_large_has_the_published_sizes() -> None:
    with torch.device("meta"):
        backbone = swin_large(pretrained=False, recompute=True)
    assert backbone.channels == [384, 768, 1536]
    assert sum(p.numel() for p in backbone.parameters()) == 195_200_820
    assert all(p.requires_grad for p in backbone.parameters())
    rates = []
    for stage in backbone.network.layers:
        for block in stage.blocks:
            rates.append(getattr(block.drop_path2, "drop_prob", 0.0))
    assert rates == pytest.approx([0.2 * i / 23 for i in range(24)])


def official_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of timm's network as the authors save their classifiers."""
    official = {}
    for name, value in state.items():
        parts = name.split(".")
        if "downsample" in parts:
            parts[1] = str(int(parts[1]) - 1)
        official[".".join(parts)] = value
    # Tensors that are dropped.
    official["layers.0.blocks.1.attn_mask"] = torch.ones(1)
    official["layers.0.blocks.0.attn.relative_position_index"] = torch.ones(1)
    official["head.weight"] = torch.ones(1)
    return official


@pytest.mark.parametrize("is_official", [False, True])
def test_files_of_the_authors_and_of_timm_are_loaded(is_official: bool, tmp_path: Path) -> None:
    source = small_network(seed=5)
    state = source.state_dict()
    if is_official:
        saved = {"model": official_state(state)}
    else:
        saved = {**state, "head.fc.weight": torch.ones(1)}
    torch.save(saved, tmp_path / "swin.pth")
    target = small_network(seed=6)
    file = read_backbone_file(str(tmp_path / "swin.pth"), (OFFICIAL_SWIN, TIMM_SWIN))
    load_all_weights(target, file)
    for name, value in target.state_dict().items():
        assert torch.equal(value, state[name]), name
    maps = []
    for network in (source, target):
        backbone = swin(copy.deepcopy(network), recompute=False).eval()
        maps.append(backbone(random_pixels(61, 90)))
    assert all(torch.equal(a, b) for a, b in zip(*maps))


def test_other_files_are_refused(tmp_path: Path) -> None:
    torch.save({"bn1.weight": torch.ones(1)}, tmp_path / "resnet.pth")
    with pytest.raises(
        WeightsError, match="these are not the weights of the authors' Swin Transformer or timm's"
    ):
        swin_large(str(tmp_path / "resnet.pth"), recompute=False)
