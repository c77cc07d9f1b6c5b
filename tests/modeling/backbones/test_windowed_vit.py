"""Vision Transformers with windows: what a token depends on, positions, sizes, unused blocks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from groupdetr.modeling.backbones.backbone import Backbone
from groupdetr.modeling.backbones.windowed_vit import (
    WindowedViTSizes,
    lw_detr_vit,
    windowed_dinov2,
)

# Two blocks with windows of 2 x 2 patches
SIZES = WindowedViTSizes(
    width=16,
    depth=2,
    num_heads=2,
    patch=8,
    windows=2,
    global_blocks=(),
    map_blocks=(0, 1),
    position_grid=4,
)
BACKBONES = [lw_detr_vit, windowed_dinov2]


@pytest.fixture(params=BACKBONES)
def build(request: pytest.FixtureRequest) -> type[Backbone]:
    torch.manual_seed(0)
    return request.param


def last_map(backbone: Backbone, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return backbone.eval()(pixels)[-1]


def changed_tokens(backbone: Backbone) -> Tensor:
    """Return [4,6] bool: the tokens that depend on the first pixel of an image of 4 x 6 patches."""
    pixels = torch.randn(1, 3, 32, 48)
    changed = pixels.clone()
    changed[..., 0, 0] += 10
    difference = last_map(backbone, changed) - last_map(backbone, pixels)
    return difference[0].abs().amax(0) > 1e-6


def test_without_global_blocks_a_token_depends_on_its_window(build: type[Backbone]) -> None:
    """The windows of an image that is not a square are not squares, either."""
    expected = torch.zeros(4, 6, dtype=torch.bool)
    expected[:2, :3] = True
    assert torch.equal(changed_tokens(build(SIZES, recompute=False)), expected)


def test_with_a_global_block_a_token_depends_on_the_whole_image(build: type[Backbone]) -> None:
    sizes = replace(SIZES, global_blocks=(1,))
    assert changed_tokens(build(sizes, recompute=False)).all()


def test_one_window_is_an_ordinary_vision_transformer(build: type[Backbone]) -> None:
    """Then it does not matter which blocks are global."""
    backbones = []
    for global_blocks in ((), (0, 1)):
        torch.manual_seed(0)
        sizes = replace(SIZES, windows=1, global_blocks=global_blocks)
        backbones.append(build(sizes, recompute=False))
    pixels = torch.randn(2, 3, 32, 32)
    maps = [last_map(backbone, pixels) for backbone in backbones]
    assert torch.equal(maps[0], maps[1])
    assert maps[0].shape == (2, 16, 4, 4)


def test_positions_of_the_size_of_the_table_are_the_table(build: type[Backbone]) -> None:
    embed = build(SIZES, recompute=False).network.embed
    table = embed.position[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
    assert torch.equal(embed.positions(4, 4), table)
    constant = torch.nn.init.constant_(embed.position, 0.7)
    assert torch.allclose(embed.positions(6, 10), constant[:1, :1, :1, None], atol=1e-6)


def test_images_that_do_not_have_whole_windows_are_refused(build: type[Backbone]) -> None:
    backbone = build(SIZES, recompute=False)
    with pytest.raises(ValueError, match=r"32 x 40 pixels .* multiple of 16\. Resize"):
        backbone(torch.zeros(1, 3, 32, 40))


def test_blocks_after_the_last_map_are_not_trained(build: type[Backbone]) -> None:
    """RF-DETR-base has one. It is kept, so that files with its weights can be written."""
    backbone = build(replace(SIZES, depth=3), recompute=False)
    backbone.train()
    torch.stack([x.sum() for x in backbone(torch.randn(1, 3, 32, 32))]).sum().backward()
    for name, parameter in backbone.named_parameters():
        is_unused = name.startswith("network.blocks.2.")
        assert parameter.requires_grad != is_unused
        assert (parameter.grad is None) == is_unused


def test_the_learning_rates_of_published_models() -> None:
    """LW-DETR's last block has the factor 0.8, and RF-DETR's 0.8 ** 2 if it has the last map."""
    sizes = replace(SIZES, depth=12, map_blocks=(2, 5, 8, 11))
    lw, rf = lw_detr_vit(sizes, recompute=False), windowed_dinov2(sizes, recompute=False)
    base = windowed_dinov2(replace(sizes, map_blocks=(1, 4, 7, 10)), recompute=False)
    for backbone, exponent in ((lw, 1), (rf, 2), (base, 1)):
        last = "network.blocks.11.norm1.weight"
        assert backbone.lr_factor(last, 0.8) == pytest.approx(0.8**exponent)
        embedding = "network.embed.position"
        assert backbone.lr_factor(embedding, 0.8) == pytest.approx(0.8 ** (12 + exponent))
    assert rf.lr_factor("network.norm.weight", 0.8) == 1.0
