"""Plain Vision Transformers equal Hugging Face's ViTDet, take images of any size, and start from MAE's files."""

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

from groupdetr.checkpoints.reading import Checkpoint
from groupdetr.errors import WeightsError
from groupdetr.modeling.backbones.backbone import Backbone
from groupdetr.modeling.backbones.pretrained_layouts import MAE
from groupdetr.modeling.backbones.simple_pyramid import SimplePyramid
from groupdetr.modeling.backbones.vit import HUGE, Sizes, ViT, vit_huge

TINY = Sizes(width=32, depth=4, num_heads=2, window=4, global_blocks=(1, 3), image=128, channels=24)


def tiny(recompute: bool = False, pretrained: str | bool = False) -> Backbone:
    """With position tables as training leaves them."""
    torch.manual_seed(0)
    backbone = vit_huge(pretrained, recompute, TINY)
    for name, value in backbone.named_parameters():
        if "rel_pos" in name and not pretrained:
            value.data.normal_()
    return backbone


def pixels(*size: int) -> Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("height", "width"), [(128, 192), (97, 150), (9, 40)])
def test_maps_of_any_size_have_strides_8_to_64(height: int, width: int) -> None:
    backbone = tiny()
    assert backbone.channels == [24] * 4
    rows, columns = -(-height // 16), -(-width // 16)
    maps = backbone(pixels(height, width))
    halves = [(-(-rows // step), -(-columns // step)) for step in (2, 4)]
    assert [tuple(x.shape) for x in maps] == [
        (2, 24, *shape) for shape in ((2 * rows, 2 * columns), (rows, columns), *halves)
    ]
    assert torch.equal(maps[3], maps[2][:, :, ::2, ::2])
    assert all(x.mean(1).abs().max() < 1e-5 for x in maps)  # a norm comes last


def test_the_edge_that_is_padded_inside_is_that_of_zeros_outside() -> None:
    backbone = tiny().eval()
    inside, outside = backbone(pixels(97, 150)), backbone(F.pad(pixels(97, 150), (0, 10, 0, 15)))
    assert all(torch.equal(a, b) for a, b in zip(inside, outside))


@pytest.mark.parametrize(("height", "width"), [(128, 128), (96, 160), (240, 48)])
def test_the_transformer_is_hugging_faces_vitdet(height: int, width: int) -> None:
    """Windows with padding, and tables of relative positions for other sizes than they were made for."""
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
    vit = tiny().network.vit.eval()  # type: ignore[union-attr]
    state = {hugging_face(name): value for name, value in vit.state_dict().items()}
    absolute = "embeddings.position_embeddings"  # cannot be left out there
    theirs.load_state_dict({**state, absolute: torch.zeros_like(theirs.state_dict()[absolute])})
    with torch.no_grad():
        expected, found = (
            theirs(pixels(height, width)).last_hidden_state,
            vit(pixels(height, width)),
        )
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-4


def hugging_face(name: str) -> str:
    name = re.sub(r"^blocks\.(\d+)\.attn\.", r"encoder.layer.\1.attention.", name)
    return re.sub(r"^blocks\.", "encoder.layer.", name).replace(
        "patch_embed.proj", "embeddings.projection"
    )


def test_the_pyramid_is_that_of_the_spec() -> None:
    pyramid = SimplePyramid(width=8, channels=6)
    assert {
        name: tuple(value.shape) for name, value in pyramid.named_parameters() if value.ndim > 1
    } == {
        "fine.0.weight": (8, 4, 2, 2),
        "fine.1.weight": (6, 4, 1, 1),
        "fine.3.weight": (6, 6, 3, 3),
        "same.0.weight": (6, 8, 1, 1),
        "same.2.weight": (6, 6, 3, 3),
        "coarse.1.weight": (6, 8, 1, 1),
        "coarse.3.weight": (6, 6, 3, 3),
    }
    biases = {name for name, _ in pyramid.named_parameters() if name.endswith("bias")}
    assert biases == {"fine.0.bias"} | {
        f"{part}.bias" for part in ("fine.2", "fine.4", "same.1", "same.3")
    } | {
        "coarse.2.bias",
        "coarse.4.bias",
    }  # of norms, but for the first
    x = torch.randn(1, 8, 4, 6)
    first = F.conv2d(F.max_pool2d(x, 2), pyramid.coarse[1].weight)  # type: ignore[arg-type]
    normed = (first - first.mean(1, keepdim=True)) / (
        first.var(1, keepdim=True, unbiased=False) + 1e-6
    ).sqrt()
    assert torch.allclose(pyramid.coarse[:3](x), normed, atol=1e-5)


def test_recomputing_gives_the_same_gradients() -> None:
    """With its random paths, too."""
    plain, frugal = tiny().train(), tiny(recompute=True).train()
    losses = []
    for backbone in (plain, frugal):
        torch.manual_seed(3)
        losses.append(sum(x.square().sin().sum() for x in backbone(pixels(97, 150))))
        losses[-1].backward()
    assert torch.equal(*losses)
    for (name, a), b in zip(plain.named_parameters(), frugal.parameters()):
        assert a.grad is not None, name
        assert torch.allclose(a.grad, b.grad, atol=1e-5), name


def test_vit_huge_has_as_many_parameters_as_the_published_one() -> None:
    with torch.device("meta"):
        backbone = vit_huge(pretrained=False, recompute=True)
    vit, pyramid = (
        sum(p.numel() for p in part.parameters()) for part in backbone.network.children()
    )
    assert (vit, pyramid) == (630_864_640, 5_869_184)
    rates = [getattr(block.drop_path2, "drop_prob", 0.0) for block in backbone.network.vit.blocks]  # type: ignore[union-attr]
    assert rates == pytest.approx([0.1 * i / 31 for i in range(32)])
    tables = [block.attn.rel_pos_h.shape for block in backbone.network.vit.blocks]  # type: ignore[union-attr]
    assert tables == [(127 if i in (7, 15, 23, 31) else 27, 80) for i in range(32)]


@pytest.mark.slow
def test_vit_huge_answers() -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)  # 1.3 GB
    try:
        backbone, started = vit_huge(pretrained=False, recompute=False).eval(), time.monotonic()
        with torch.no_grad():
            maps = backbone(pixels(250, 300).bfloat16())
    finally:
        torch.set_default_dtype(before)
    assert [tuple(x.shape[1:]) for x in maps] == [
        (256, 32, 38),
        (256, 16, 19),
        (256, 8, 10),
        (256, 4, 5),
    ]
    assert all(x.isfinite().all() and x.std() > 0.5 for x in maps)
    print(f"250 x 300 pixels in {time.monotonic() - started:.1f} s")


# files


def mae(**options: Any) -> dict[str, Tensor]:
    """Of a small encoder as MAE trains it, with the decoder that the authors' files have besides."""
    torch.manual_seed(4)
    sizes = {
        "img_size": 56,
        "patch_size": 14,
        "embed_dim": 32,
        "depth": 4,
        "num_heads": 2,
        "num_classes": 0,
    }
    decoder = {
        "mask_token": 1,
        "decoder_pos_embed": 1,
        "decoder_embed.weight": 1,
        "decoder_blocks.0.norm1.bias": 1,
    }
    network = VisionTransformer(**{**sizes, **options})
    return {**network.state_dict(), **dict.fromkeys(decoder, torch.ones(1))}


@pytest.mark.parametrize("wrapped", [False, True])
def test_maes_files_are_read_and_their_patches_resampled(wrapped: bool, tmp_path: Path) -> None:
    state = mae()
    torch.save({"model": state} if wrapped else state, tmp_path / "mae.pth")
    found = tiny(pretrained=str(tmp_path / "mae.pth")).network.vit.state_dict()  # type: ignore[union-attr]
    for name, value in found.items():
        if "rel_pos" in name:
            assert not value.any()
        elif name == "patch_embed.proj.weight":
            assert torch.equal(value, resample_patch_embed(state[name], [16, 16]))
        else:
            assert torch.equal(value, state[name]), name


def test_a_resampled_kernel_sees_in_a_larger_picture_what_it_saw_before() -> None:
    kernel, small = mae()["patch_embed.proj.weight"], torch.randn(1, 3, 14, 14)
    large = F.interpolate(small, size=(16, 16), mode="bicubic", antialias=True)
    resampled = resample_patch_embed(kernel, [16, 16])
    assert torch.allclose(F.conv2d(large, resampled), F.conv2d(small, kernel), atol=1e-4)


def test_patches_of_16_pixels_and_tables_of_relative_positions_are_taken_as_they_are(
    tmp_path: Path,
) -> None:
    """detectron2's start files have the former, and detectors trained from them the latter."""
    source = ViT(TINY, recompute=False)
    state = {name: torch.randn_like(value) for name, value in source.state_dict().items()}
    torch.save(state, tmp_path / "vit.pth")
    found = tiny(pretrained=str(tmp_path / "vit.pth")).network.vit.state_dict()  # type: ignore[union-attr]
    assert all(torch.equal(found[name], state[name]) for name in found)


def test_the_huge_one_on_the_hub_has_all_names_and_shapes() -> None:
    with torch.device("meta"):
        theirs = timm.create_model("vit_huge_patch14_224.mae", num_classes=0).state_dict()
        ours = ViT(HUGE, recompute=False).state_dict()
    found = MAE.convert(Checkpoint(theirs, {}, "the hub")).state
    assert found.keys() == {name for name in ours if "rel_pos" not in name}
    assert [name for name in found if found[name].shape != ours[name].shape] == [
        "patch_embed.proj.weight"
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda state: {"conv1.weight": state["norm.bias"]},
            "not the weights of a Vision Transformer trained by MAE",
        ),
        (
            lambda state: {**state, "neck.0.weight": state["norm.bias"]},
            r"trained by MAE has no neck\.0\.weight",
        ),
        (lambda state: mae(depth=5), r"the backbone has no blocks\.4\.attn"),  # noqa: ARG005
        (lambda state: mae(depth=3), r"the file has no blocks\.3\.attn"),  # noqa: ARG005
        (lambda state: mae(embed_dim=64), r"of another shape: blocks\.0\.attn"),  # noqa: ARG005
        (lambda state: {**state, "norm.bias": tiny}, "asks to run code"),
    ],
)
def test_other_files_are_refused(
    change: Callable[[dict[str, Tensor]], dict[str, Any]], said: str, tmp_path: Path
) -> None:
    torch.save(change(mae()), tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=said):
        tiny(pretrained=str(tmp_path / "other.pth"))


# rates


def test_rates_fall_from_the_last_block_to_the_first() -> None:
    with torch.device("meta"):
        backbone = vit_huge(pretrained=False, recompute=False)
    factors = {name: backbone.rate_factor(name, 0.7) for name, _ in backbone.named_parameters()}
    for name, factor in factors.items():
        if block := re.match(r"network\.vit\.blocks\.(\d+)\.", name):
            assert factor == pytest.approx(0.7 ** (HUGE.depth - int(block[1])))
        else:
            assert factor == (0.01 if name.startswith("network.vit.patch_embed.") else 1.0), name
    assert factors["network.vit.blocks.31.norm1.bias"] == pytest.approx(0.7)
    assert factors["network.vit.blocks.0.norm1.bias"] == pytest.approx(1.1e-5, rel=0.01)


def test_weight_decay_spares_the_norms_of_the_blocks() -> None:
    """PaddleDetection spares them by name; the pyramid's norms it does not."""
    backbone = tiny()
    spared = {name for name, _ in backbone.named_parameters() if not backbone.is_decayed(name)}
    assert spared == {
        f"network.vit.blocks.{i}.norm{n}.{part}"
        for i in range(4)
        for n in (1, 2)
        for part in ("weight", "bias")
    }
