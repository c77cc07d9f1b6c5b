"""VoVNetV2-99 is timm's with eSE in every block, as PETR has it; its norms learn, and do not count."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from timm.layers import create_attn
from timm.models.vovnet import OsaBlock, VovNet
from torch import Tensor, nn

from groupdetr.errors import WeightsError
from groupdetr.modeling.backbones.backbone import Backbone
from groupdetr.modeling.backbones.vovnet import V99, VoVNet, Widths, vovnet99
from tests.weights.petr import vovnet_state

NARROW = Widths(stem=8, inside=(12, 14, 16, 18), outside=(20, 24, 28, 32), blocks=V99.blocks)


def ours(recompute: bool = False, seed: int = 0) -> VoVNet:
    """With norms that are not the identity."""
    torch.manual_seed(seed)
    network = VoVNet(NARROW, recompute)
    for name, value in network.state_dict().items():
        if "norm" in name:
            value.uniform_(0.5, 1.0) if name.endswith(("weight", "var")) else value.normal_(0, 0.1)
    return network


def theirs(network: VoVNet) -> nn.Module:
    """timm's of the same sizes and weights, with the eSE that it leaves out."""
    stem = NARROW.stem
    other = VovNet(
        {
            "stem_chs": [stem, stem, 2 * stem],
            "stage_conv_chs": [*NARROW.inside],
            "stage_out_chs": [*NARROW.outside],
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
    state = {renamed(name): value for name, value in network.state_dict().items()}
    missing, unexpected = other.load_state_dict(state, strict=False)
    assert not unexpected
    assert all("num_batches_tracked" in name for name in missing)
    return other.eval()


def renamed(name: str) -> str:
    part, *rest = name.replace(".norm.", ".bn.").split(".")
    if part == "stem":
        return ".".join((part, *rest))
    stage, block, *inner = rest
    named = (
        ".".join(inner)
        .replace("convs.", "conv_mid.")
        .replace("join.", "conv_concat.")
        .replace("weigh.", "attn.")
    )
    return f"stages.{stage}.blocks.{block}.{named}"


def features(network: nn.Module, pixels: Tensor) -> list[Tensor]:
    x, maps = network.stem(pixels), []  # type: ignore[operator]
    for stage in network.stages:  # type: ignore[union-attr]
        maps.append(x := stage(x))
    return maps[-2:]


def pixels(*size: int) -> Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", [(64, 96), (61, 90), (33, 47)])
def test_maps_are_timms_in_training_too(size: tuple[int, int]) -> None:
    network = ours().train()
    with torch.no_grad():
        found, expected = network(pixels(*size)), features(theirs(network), pixels(*size))
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() < 1e-5 * b.abs().max()


@pytest.mark.parametrize("prefix", ["img_backbone", "backbone.bottom_up"])
def test_it_starts_from_files_of_petr_and_of_dd3d(prefix: str, tmp_path: Path) -> None:
    network, path = ours(), tmp_path / "start.pth"
    state = {f"network.{name}": value for name, value in network.state_dict().items()}
    theirs = {f"{prefix}.{name}": value for name, value in vovnet_state(state, "network").items()}
    torch.save(
        {"state_dict": {**theirs, "bbox_head.cls_convs.0.conv.weight": torch.zeros(1)}}, path
    )
    loaded = vovnet99(str(path), False, nn.Identity(), NARROW).network
    assert all(
        torch.equal(value, network.state_dict()[name])
        for name, value in loaded.state_dict().items()
    )
    incomplete = {name: value for name, value in theirs.items() if "OSA4_9.ese" not in name}
    torch.save({"state_dict": incomplete}, path)
    with pytest.raises(WeightsError, match=r"stages\.2\.8\.weigh\.fc"):
        vovnet99(str(path), False, nn.Identity(), NARROW)


def test_there_is_nothing_to_fetch() -> None:
    with pytest.raises(WeightsError, match="no weights of VoVNetV2-99"):
        vovnet99(True, False, nn.Identity(), NARROW)


def test_it_has_the_published_number_of_weights() -> None:
    with torch.device("meta"):
        network = VoVNet(V99, recompute=False)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(69.52e6, rel=1e-4)


def test_scales_and_shifts_learn_and_statistics_stay() -> None:
    network = ours().train()
    before = {name: value.clone() for name, value in network.named_buffers()}
    sum(x.square().mean() for x in network(pixels(64, 64))).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())
    assert len(before) == 2 * (3 + 6 * sum(NARROW.blocks))
    assert all(torch.equal(value, before[name]) for name, value in network.named_buffers())


def test_recomputing_gives_the_same_gradients() -> None:
    gradients = []
    for network in (ours().train(), ours(recompute=True).train()):
        sum(x.square().mean() for x in network(pixels(64, 64))).backward()  # type: ignore[union-attr]
        gradients.append([p.grad for p in network.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))


def test_views_are_images_in_turn_padded_to_a_multiple_of_32() -> None:
    backbone: Backbone = vovnet99(
        False, recompute=False, augment=nn.Identity(), widths=NARROW
    ).eval()
    views = torch.randn(2, 3, 3, 40, 60, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        together, padded = backbone(views), torch.nn.functional.pad(views[1, 2], (0, 4, 0, 24))
        alone = backbone(padded[None])
    assert [x.shape for x in together] == [(6, 28, 4, 4), (6, 32, 2, 2)]
    assert all(torch.allclose(many[5], one[0], atol=1e-5) for many, one in zip(together, alone))
