"""The plain Vision Transformer equals Hugging Face's ViTDet and loads MAE's files.

It takes images of any size.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from timm.layers import resample_patch_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F

from groupdetr.checkpoints.checkpoint import Checkpoint
from groupdetr.errors import WeightsError
from groupdetr.modeling.backbones.backbone import Backbone
from groupdetr.modeling.backbones.pretrained_layouts import MAE
from groupdetr.modeling.backbones.vit import HUGE, ViT, ViTSizes, vit_huge

TINY = ViTSizes(
    width=32, depth=4, num_heads=2, window=4, global_blocks=(1, 3), image=128, channels=24
)


def tiny_backbone(recompute: bool = False, pretrained: str | bool = False) -> Backbone:
    """A small backbone. Without ``pretrained``, its relative positions are random and not zero."""
    torch.manual_seed(0)
    backbone = vit_huge(pretrained, recompute, TINY)
    for name, value in backbone.named_parameters():
        if "rel_pos" in name and not pretrained:
            value.data.normal_()
    return backbone


def vit_of(backbone: Backbone) -> ViT:
    vit = backbone.network.get_submodule("vit")
    assert isinstance(vit, ViT)
    return vit


def random_pixels(height: int, width: int) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("height", "width"), [(128, 192), (97, 150), (9, 40)])
def test_maps_of_any_size_have_strides_8_to_64(height: int, width: int) -> None:
    backbone = tiny_backbone()
    assert backbone.channels == [24] * 4
    maps = backbone(random_pixels(height, width))
    rows, columns = -(-height // 16), -(-width // 16)
    assert [tuple(x.shape) for x in maps] == [
        (2, 24, 2 * rows, 2 * columns),
        (2, 24, rows, columns),
        (2, 24, -(-rows // 2), -(-columns // 2)),
        (2, 24, -(-rows // 4), -(-columns // 4)),
    ]
    assert torch.equal(maps[3], maps[2][:, :, ::2, ::2])
    assert all(x.mean(1).abs().max() < 1e-5 for x in maps), "the last module is a layer norm"


def test_images_are_padded_with_zeros_to_whole_patches() -> None:
    backbone = tiny_backbone().eval()
    pixels = random_pixels(97, 150)
    actual, expected = backbone(pixels), backbone(F.pad(pixels, (0, 10, 0, 15)))
    assert all(torch.equal(a, b) for a, b in zip(actual, expected))


@pytest.mark.parametrize(("height", "width"), [(128, 128), (96, 160), (240, 48)])
def test_the_transformer_equals_hugging_faces_vitdet(height: int, width: int) -> None:
    """The sizes need padded windows and interpolated tables of relative positions."""
    config = transformers.VitDetConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=128,
        pretrain_image_size=128,
        patch_size=16,
        layer_norm_eps=1e-5,
        window_size=4,
        use_relative_position_embeddings=True,
        window_block_indices=[0, 2],
        residual_block_indices=[],
    )
    theirs = transformers.VitDetModel(config).eval()
    ours = vit_of(tiny_backbone()).eval()
    state = {hugging_face_name(name): value for name, value in ours.state_dict().items()}
    # Their absolute positions cannot be turned off.
    absolute = "embeddings.position_embeddings"
    state[absolute] = torch.zeros_like(theirs.state_dict()[absolute])
    theirs.load_state_dict(state)
    pixels = random_pixels(height, width)
    with torch.no_grad():
        expected, actual = theirs(pixels).last_hidden_state, ours(pixels)
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() < 1e-4


def hugging_face_name(name: str) -> str:
    name = re.sub(r"^blocks\.(\d+)\.attn\.", r"encoder.layer.\1.attention.", name)
    name = re.sub(r"^blocks\.", "encoder.layer.", name)
    return name.replace("patch_embed.proj", "embeddings.projection")


def test_recomputing_gives_the_same_gradients() -> None:
    """This holds with stochastic depth, too."""
    plain, recomputing = tiny_backbone().train(), tiny_backbone(recompute=True).train()
    losses = []
    for backbone in (plain, recomputing):
        torch.manual_seed(3)
        loss = sum(x.square().sin().sum() for x in backbone(random_pixels(97, 150)))
        loss.backward()
        losses.append(loss)
    assert torch.equal(*losses)
    for (name, a), b in zip(plain.named_parameters(), recomputing.parameters()):
        assert a.grad is not None, name
        assert torch.allclose(a.grad, b.grad, atol=1e-5), name


def test_vit_huge_has_the_published_sizes() -> None:
    with torch.device("meta"):
        backbone = vit_huge(pretrained=False, recompute=True)
    num_parameters = []
    for part in backbone.network.children():
        num_parameters.append(sum(p.numel() for p in part.parameters()))
    assert num_parameters == [630_864_640, 5_869_184]  # of the transformer and the pyramid
    blocks = vit_of(backbone).blocks
    rates = [getattr(block.drop_path2, "drop_prob", 0.0) for block in blocks]
    assert rates == pytest.approx([0.1 * i / 31 for i in range(32)])
    tables = [block.attn.rel_pos_h.shape for block in blocks]
    assert tables == [(127 if i in (7, 15, 23, 31) else 27, 80) for i in range(32)]


@pytest.mark.slow
def test_vit_huge_runs() -> None:
    default_dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)  # 1.3 GB
    try:
        backbone = vit_huge(pretrained=False, recompute=False).eval()
        start_time = time.monotonic()
        with torch.no_grad():
            maps = backbone(random_pixels(250, 300).bfloat16())
    finally:
        torch.set_default_dtype(default_dtype)
    assert [tuple(x.shape[1:]) for x in maps] == [
        (256, 32, 38),
        (256, 16, 19),
        (256, 8, 10),
        (256, 4, 5),
    ]
    assert all(x.isfinite().all() and x.std() > 0.5 for x in maps)
    print(f"250 x 300 pixels in {time.monotonic() - start_time:.1f} s")


# Pretrained files


def mae_state(**options: Any) -> dict[str, Tensor]:
    """The state of a small encoder trained by MAE, with its decoder as in the authors' files."""
    torch.manual_seed(4)
    sizes = {
        "img_size": 56,
        "patch_size": 14,
        "embed_dim": 32,
        "depth": 4,
        "num_heads": 2,
        "num_classes": 0,
    }
    network = VisionTransformer(**{**sizes, **options})
    decoder = (
        "mask_token",
        "decoder_pos_embed",
        "decoder_embed.weight",
        "decoder_blocks.0.norm1.bias",
    )
    return {**network.state_dict(), **dict.fromkeys(decoder, torch.ones(1))}


@pytest.mark.parametrize("is_nested", [False, True])
def test_maes_files_are_loaded_and_their_patches_resampled(is_nested: bool, tmp_path: Path) -> None:
    state = mae_state()
    torch.save({"model": state} if is_nested else state, tmp_path / "mae.pth")
    backbone = tiny_backbone(pretrained=str(tmp_path / "mae.pth"))
    for name, value in vit_of(backbone).state_dict().items():
        if "rel_pos" in name:
            assert not value.any()
        elif name == "patch_embed.proj.weight":
            assert torch.equal(value, resample_patch_embed(state[name], [16, 16]))
        else:
            assert torch.equal(value, state[name]), name


def test_a_resampled_kernel_has_the_same_output_for_an_image_enlarged_alike() -> None:
    kernel, small = mae_state()["patch_embed.proj.weight"], torch.randn(1, 3, 14, 14)
    large = F.interpolate(small, size=(16, 16), mode="bicubic", antialias=True)
    resampled = resample_patch_embed(kernel, [16, 16])
    assert torch.allclose(F.conv2d(large, resampled), F.conv2d(small, kernel), atol=1e-4)


def test_patches_of_16_pixels_and_tables_of_relative_positions_are_loaded_unchanged(
    tmp_path: Path,
) -> None:
    """detectron2's pretrained files have such patches, and detectors trained from them tables."""
    source = ViT(TINY, recompute=False)
    state = {name: torch.randn_like(value) for name, value in source.state_dict().items()}
    torch.save(state, tmp_path / "vit.pth")
    backbone = tiny_backbone(pretrained=str(tmp_path / "vit.pth"))
    for name, value in vit_of(backbone).state_dict().items():
        assert torch.equal(value, state[name]), name


def test_the_huge_network_of_the_hub_has_all_names_and_shapes() -> None:
    with torch.device("meta"):
        theirs = timm.create_model("vit_huge_patch14_224.mae", num_classes=0).state_dict()
        ours = ViT(HUGE, recompute=False).state_dict()
    converted = MAE.convert(Checkpoint(theirs, {}, "the hub")).state
    assert converted.keys() == {name for name in ours if "rel_pos" not in name}
    other_shapes = [name for name in converted if converted[name].shape != ours[name].shape]
    assert other_shapes == ["patch_embed.proj.weight"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: {"conv1.weight": state["norm.bias"]},
            "not the weights of a Vision Transformer trained by MAE",
        ),
        (
            lambda state: {**state, "neck.0.weight": state["norm.bias"]},
            r"trained by MAE has no neck\.0\.weight",
        ),
    ],
)
def test_other_files_are_refused(
    change: Callable[[dict[str, Tensor]], dict[str, Any]], message: str, tmp_path: Path
) -> None:
    torch.save(change(mae_state()), tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=message):
        tiny_backbone(pretrained=str(tmp_path / "other.pth"))
