"""VoVNetV2-99 equals timm's with eSE in every block, as in PETR.

The scales and shifts of its norms are trained, and their statistics are fixed.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from timm.layers import create_attn
from timm.models.vovnet import OsaBlock, VovNet
from torch import Tensor, nn
from torch.nn import functional as F

from groupdetr.errors import WeightsError
from groupdetr.modeling.backbones.backbone import Backbone
from groupdetr.modeling.backbones.vovnet import V99, VoVNet, VoVNetWidths, vovnet99
from tests.weights.petr import vovnet_state

NARROW = VoVNetWidths(
    stem=8, conv_channels=(12, 14, 16, 18), out_channels=(20, 24, 28, 32), blocks=V99.blocks
)


def random_vovnet(recompute: bool = False, seed: int = 0) -> VoVNet:
    """A narrow VoVNet whose norms are not the identity."""
    torch.manual_seed(seed)
    network = VoVNet(NARROW, recompute)
    for name, value in network.state_dict().items():
        if "norm" not in name:
            continue
        if name.endswith(("weight", "var")):
            value.uniform_(0.5, 1.0)
        else:
            value.normal_(0, 0.1)
    return network


def timm_vovnet(network: VoVNet) -> VovNet:
    """timm's network with the sizes and weights of ours, and with eSE in all of its blocks."""
    stem = NARROW.stem
    other = VovNet(
        {
            "stem_chs": [stem, stem, 2 * stem],
            "stage_conv_chs": [*NARROW.conv_channels],
            "stage_out_chs": [*NARROW.out_channels],
            "layer_per_block": 5,
            "block_per_stage": NARROW.blocks,
            "residual": True,
            "depthwise": False,
            "attn": "ese",
        },
        num_classes=0,
    )
    for block in other.modules():
        if isinstance(block, OsaBlock) and block.attn is None:
            block.attn = create_attn("ese", block.conv_concat.conv.out_channels)
    state = {timm_name(name): value for name, value in network.state_dict().items()}
    missing, unexpected = other.load_state_dict(state, strict=False)
    assert not unexpected
    assert all("num_batches_tracked" in name for name in missing)
    return other.eval()


def timm_name(name: str) -> str:
    name = name.replace(".norm.", ".bn.")
    if name.startswith("stem."):
        return name
    _, stage, block, in_block = name.split(".", 3)
    in_block = in_block.replace("convs.", "conv_mid.")
    in_block = in_block.replace("concat.", "conv_concat.")
    in_block = in_block.replace("ese.", "attn.")
    return f"stages.{stage}.blocks.{block}.{in_block}"


def last_two_maps(network: VovNet, pixels: Tensor) -> list[Tensor]:
    x = network.stem(pixels)
    maps = []
    for stage in network.stages:
        x = stage(x)
        maps.append(x)
    return maps[-2:]


def random_pixels(height: int, width: int) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("height", "width"), [(64, 96), (61, 90), (33, 47)])
def test_maps_equal_timms_also_in_training(height: int, width: int) -> None:
    network, pixels = random_vovnet().train(), random_pixels(height, width)
    with torch.no_grad():
        actual, expected = network(pixels), last_two_maps(timm_vovnet(network), pixels)
    for a, b in zip(actual, expected, strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() < 1e-5 * b.abs().max()


@pytest.mark.parametrize("prefix", ["img_backbone", "backbone.bottom_up"])
def test_files_of_petr_and_dd3d_are_loaded(prefix: str, tmp_path: Path) -> None:
    network, path = random_vovnet(), tmp_path / "pretrained.pth"
    state = {f"network.{name}": value for name, value in network.state_dict().items()}
    theirs = {f"{prefix}.{name}": value for name, value in vovnet_state(state, "network").items()}
    other_part = {"bbox_head.cls_convs.0.conv.weight": torch.zeros(1)}
    torch.save({"state_dict": {**theirs, **other_part}}, path)
    loaded = vovnet99(str(path), False, nn.Identity(), NARROW).network
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, network.state_dict()[name]), name
    incomplete = {name: value for name, value in theirs.items() if "OSA4_9.ese" not in name}
    torch.save({"state_dict": incomplete}, path)
    with pytest.raises(WeightsError, match=r"stages\.2\.8\.ese\.fc"):
        vovnet99(str(path), False, nn.Identity(), NARROW)


def test_the_hub_has_no_weights() -> None:
    with pytest.raises(WeightsError, match="no weights of VoVNetV2-99"):
        vovnet99(True, False, nn.Identity(), NARROW)


def test_it_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        network = VoVNet(V99, recompute=False)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(69.52e6, rel=1e-4)


def test_scales_and_shifts_are_trained_and_statistics_are_fixed() -> None:
    network = random_vovnet().train()
    before = {name: value.clone() for name, value in network.named_buffers()}
    torch.stack([x.square().mean() for x in network(random_pixels(64, 64))]).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    num_norms = 3 + 6 * sum(NARROW.blocks)
    assert len(before) == 2 * num_norms
    for name, value in network.named_buffers():
        assert torch.equal(value, before[name]), name


def test_recomputing_gives_the_same_gradients() -> None:
    gradients = []
    for network in (random_vovnet().train(), random_vovnet(recompute=True).train()):
        torch.stack([x.square().mean() for x in network(random_pixels(64, 64))]).sum().backward()
        gradients.append([p.grad for p in network.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))


def test_views_become_images_and_are_padded_to_a_multiple_of_32() -> None:
    backbone: Backbone = vovnet99(False, False, augment=nn.Identity(), widths=NARROW).eval()
    views = torch.randn(2, 3, 3, 40, 60, generator=torch.Generator().manual_seed(1))
    last_view = views[1, 2][None]
    with torch.no_grad():
        all_maps = backbone(views)
        last_maps = backbone(F.pad(last_view, (0, 4, 0, 24)))
    assert [x.shape for x in all_maps] == [(6, 28, 4, 4), (6, 32, 2, 2)]
    for all_views, one_view in zip(all_maps, last_maps):
        assert torch.allclose(all_views[5], one_view[0], atol=1e-5)
