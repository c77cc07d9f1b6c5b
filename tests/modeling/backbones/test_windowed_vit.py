"""Vision Transformers with windows: what a token depends on, positions, sizes, unused blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from timm.layers import resample_patch_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import groupdetr
from groupdetr.errors import UsageError, WeightsError
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


# Weights of DINOv2

ONE_WINDOW = replace(SIZES, windows=1)


def randomised(network: nn.Module) -> nn.Module:
    """Return the network in evaluation mode with random numbers in all parameters."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    return network.eval()


def transformers_dinov2(patch: int = SIZES.patch, width: int = SIZES.width) -> nn.Module:
    """Return a small DINOv2 of transformers with a table of 4 x 4 positions."""
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=4 * patch,
        patch_size=patch,
        out_indices=[1, 2],
    )
    return randomised(transformers.Dinov2Backbone(config))


def test_weights_of_dinov2_give_the_maps_of_transformers(tmp_path: Path) -> None:
    theirs = transformers_dinov2()
    theirs.save_pretrained(tmp_path)
    file = str(tmp_path / "model.safetensors")
    ours = windowed_dinov2(ONE_WINDOW, recompute=False, pretrained=file).eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        for our_map, their_map in zip(ours(pixels), theirs(pixels).feature_maps, strict=True):
            assert torch.allclose(our_map, their_map, atol=1e-4)


@pytest.mark.parametrize("grid", [2, 6])
def test_a_table_of_another_size_is_interpolated_as_for_an_image_of_this_size(
    grid: int, tmp_path: Path
) -> None:
    transformers_dinov2().save_pretrained(tmp_path)
    pixels = torch.randn(1, 3, *[SIZES.patch * grid] * 2)
    maps = []
    for position_grid in (4, grid):
        sizes = replace(SIZES, position_grid=position_grid)
        file = str(tmp_path / "model.safetensors")
        maps.append(last_map(windowed_dinov2(sizes, False, pretrained=file), pixels))
    assert torch.allclose(maps[1], maps[0], atol=1e-5)


def test_weights_of_metas_dinov2_give_the_maps_of_timm(tmp_path: Path) -> None:
    theirs = randomised(
        VisionTransformer(
            img_size=32,
            patch_size=SIZES.patch,
            embed_dim=SIZES.width,
            depth=SIZES.depth,
            num_heads=SIZES.num_heads,
            init_values=1.0,
            num_classes=0,
        )
    )
    # As in Meta's files
    torch.save({**theirs.state_dict(), "mask_token": torch.zeros(1, 16)}, tmp_path / "dinov2.pth")
    file = str(tmp_path / "dinov2.pth")
    ours = windowed_dinov2(ONE_WINDOW, recompute=False, pretrained=file)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        tokens = theirs.forward_features(pixels)[:, 1:]
    assert torch.allclose(last_map(ours, pixels).flatten(2).mT, tokens, atol=1e-4)


def test_a_detector_starts_from_dinov2_with_patches_of_another_size(tmp_path: Path) -> None:
    theirs = transformers_dinov2(patch=14, width=24)
    theirs.save_pretrained(tmp_path)
    sizes = {"vit_width": 24, "vit_depth": 2, "vit_heads": 2}
    blocks = {"global_blocks": (1,), "map_blocks": (0, 1)}
    file = str(tmp_path / "model.safetensors")
    model = groupdetr.create_model("rf-detr-micro", pretrained_backbone=file, **sizes, **blocks)
    state = load_file(file)
    embed = model.backbone.network.embed
    kernel = resample_patch_embed(
        state["embeddings.patch_embeddings.projection.weight"], [embed.patch, embed.patch]
    )
    assert torch.equal(embed.patch_conv.weight, kernel)
    assert torch.equal(embed.class_token, state["embeddings.cls_token"])
    assert embed.position.shape[1] == 1 + model.recipe.position_grid**2 != 1 + 4**2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: {**state, "embeddings.register_tokens": torch.zeros(1, 4, 16)},
            r"Hugging Face's DINOv2 has no embeddings\.register_tokens",
        ),
        (
            lambda state: {**state, "embeddings.position_embeddings": torch.zeros(1, 18, 16)},
            r"of another shape: embed\.position",
        ),
        (lambda state: {"conv1.weight": torch.zeros(1)}, "not the weights of Hugging Face's DINO"),
    ],
)
def test_other_files_than_dinov2s_are_refused(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], message: str, tmp_path: Path
) -> None:
    transformers_dinov2().save_pretrained(tmp_path)
    save_file(change(load_file(tmp_path / "model.safetensors")), tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match=message):
        windowed_dinov2(SIZES, False, pretrained=str(tmp_path / "other.safetensors"))


def cae_state(backbone: Backbone) -> dict[str, Tensor]:
    """Return the weights of the backbone as the files of CAE v2 have them.

    Such files have further tensors, among them blocks that LW-DETR leaves out.
    """
    ours = backbone.network.state_dict()
    theirs = {
        "pos_embed": ours["embed.position"],
        "patch_embed.proj.weight": ours["embed.patch_conv.weight"],
        "patch_embed.proj.bias": ours["embed.patch_conv.bias"],
        "cls_token": torch.zeros(1, 1, 16),
        "norm.weight": torch.zeros(16),
        "blocks.2.gamma_1": torch.zeros(16),
    }
    for i in range(2):
        block = {k.removeprefix(f"blocks.{i}."): v for k, v in ours.items() if f"blocks.{i}." in k}
        projections = [block.pop(f"attention.{x}_proj.weight") for x in ("query", "key", "value")]
        theirs[f"blocks.{i}.attn.qkv.weight"] = torch.cat(projections)
        for name, tensor in block.items():
            for our_part, their_part in (
                ("attention.query_proj.bias", "attn.q_bias"),
                ("attention.value_proj.bias", "attn.v_bias"),
                ("attention.output_proj", "attn.proj"),
                ("layer_scale", "gamma_"),
                ("feed_forward.expand", "mlp.fc1"),
                ("feed_forward.contract", "mlp.fc2"),
            ):
                name = name.replace(our_part, their_part)
            theirs[f"blocks.{i}.{name}"] = tensor
    return {f"encoder.{name}": tensor for name, tensor in theirs.items()}


def test_lw_detr_starts_from_weights_of_cae(tmp_path: Path) -> None:
    source = lw_detr_vit(SIZES, recompute=False)
    randomised(source)
    state = {**cae_state(source), "regressor.norm.weight": torch.zeros(3)}
    torch.save({"model": state}, tmp_path / "cae.pth")
    ours = lw_detr_vit(SIZES, recompute=False, pretrained=str(tmp_path / "cae.pth"))
    pixels = torch.randn(1, 3, 32, 32)
    assert torch.equal(last_map(ours, pixels), last_map(source, pixels))


def test_pretrained_weights_are_not_downloaded(build: type[Backbone]) -> None:
    with pytest.raises(UsageError, match="are not downloaded"):
        build(SIZES, recompute=False, pretrained=True)
