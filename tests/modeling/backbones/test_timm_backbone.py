"""Networks of timm serve as backbones: maps, normalisation, weights, and what is not trained."""

from __future__ import annotations

import copy
import time
from functools import cache
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from groupdetr.checkpoints import hub
from groupdetr.detectors.tiny import TinyConditionalDETR
from groupdetr.errors import UsageError, WeightsError
from groupdetr.modeling.backbones.backbone import Backbone
from groupdetr.modeling.backbones.resnet import resnet50
from groupdetr.modeling.backbones.timm_backbone import timm_backbone
from groupdetr.modeling.backbones.timm_weights import create_network
from groupdetr.structures.camera_images import CameraImages
from groupdetr.structures.images import IMAGENET_MEAN, IMAGENET_STD, Images

from .graphs import expect_equal_graph

STRIDES = (8, 16, 32)
# One small network of every family: convolutional ones, transformers and hybrids, with batch norm,
# layer norm, group norm and no norm, with maps NCHW and NHWC inside.
FAMILIES = [
    "test_resnet",
    "test_convnext",
    "test_efficientnet",
    "test_mambaout",
    "test_nfnet",
    "lcnet_035",  # of mobilenetv3
    "densenet121",
    "efficientvit_b0",
    "mobilevit_xxs",
    "pvt_v2_b0",
    "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256",
]
# More networks of similar blocks, for `-m slow`
MORE_FAMILIES = [
    "test_byobnet",
    "regnetx_002",
    "dla46x_c",
    "ese_vovnet19b_slim_dw",
    "edgenext_xx_small",
    "fastvit_t8",
    "hgnetv2_b0",
    "inception_next_atto",
]
EVERY_FAMILY = [*FAMILIES, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE_FAMILIES)]
SMALL = "test_resnet"
INCEPTION = "test_convnext"  # its weights were trained with the constants 0.5 and 0.5


@cache
def shared_backbone(name: str) -> Backbone:
    torch.manual_seed(0)
    return timm_backbone(name, pretrained=False, strides=STRIDES)


def random_pixels(height: int, width: int, seed: int = 1) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(seed))


def loss_of(backbone: Backbone, pixels: Tensor) -> Tensor:
    return torch.stack([x.square().mean() for x in backbone(pixels)]).sum()


def randomise_norms(network: nn.Module) -> None:
    """Give batch norms statistics and weights as after training."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 2.0)
            module.running_mean.normal_(std=0.1)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)


@pytest.mark.parametrize("name", EVERY_FAMILY)
def test_maps_of_images_of_any_size_have_strides_8_to_32_and_all_is_trained(name: str) -> None:
    """Sides are no multiples of 32; a map has one row for every begun 8, 16 or 32 pixels.

    In distributed training, a parameter without a gradient stops the step.
    """
    backbone = shared_backbone(name).eval()
    for height, width in ((75, 107), (64, 97)):
        pixels = random_pixels(height, width)
        with torch.inference_mode():
            maps, again = backbone(pixels), backbone(pixels)
        for x, same, channels, stride in zip(maps, again, backbone.channels, STRIDES, strict=True):
            assert x.shape == (2, channels, -(-height // stride), -(-width // stride))
            assert torch.equal(x, same), "the network is deterministic in evaluation"
            assert x.isfinite().all()
    backbone.train().zero_grad()
    loss_of(backbone, random_pixels(75, 107)).backward()
    assert not [name for name, p in backbone.named_parameters() if p.grad is None]
    assert all(p.requires_grad for p in backbone.parameters())


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "tf_mobilenetv3_small_minimal_100"])
def test_padding_does_not_shift_the_maps(name: str) -> None:
    """One more column shifted them by half a cell, because TensorFlow's padding depends on it."""
    backbone = timm_backbone(name, pretrained=False, strides=(4,)).eval()
    pixels = torch.rand(1, 3, 64, 128, generator=torch.Generator().manual_seed(0))
    (alone,) = backbone(pixels)
    (padded,) = backbone(F.pad(pixels, (0, 1)))
    # Columns that do not see the padding.
    torch.testing.assert_close(padded[..., :20], alone[..., :20])


def test_parameters_that_no_map_depends_on_are_not_trained() -> None:
    backbone = timm_backbone("efficientvim_m1", pretrained=False, strides=(16,)).train()
    loss_of(backbone, random_pixels(64, 64)).backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), name
    assert sum(not p.requires_grad for p in backbone.parameters()) == 1


def test_images_are_padded_with_zeros_as_far_as_a_network_needs_it() -> None:
    """ConvNeXt would drop the last pixels of an image. The maps of the padding are cropped."""
    backbone = shared_backbone("test_convnext").eval()
    pixels = random_pixels(75, 107)
    with torch.inference_mode():
        maps = backbone.network(pixels)
        padded_maps = backbone.network(F.pad(pixels, (0, 21, 0, 21)))
    assert maps[0].shape[-2:] == (10, 14)
    assert padded_maps[0].shape[-2:] == (12, 16)
    for x, padded in zip(maps, padded_maps, strict=True):
        assert torch.equal(x, padded[..., : x.shape[-2], : x.shape[-1]])


# Strides


@pytest.mark.parametrize("name", ["test_efficientnet", "test_convnext"])
def test_a_recorded_graph_takes_images_with_and_without_padding(name: str) -> None:
    """The part of a map that shows no padding is all of it if the sides are multiples of 32."""
    network = copy.deepcopy(shared_backbone(name).network).eval()
    expect_equal_graph(network, [(70, 100), (64, 96), (64, 100)])


def test_stages_behind_the_last_map_are_not_built() -> None:
    backbone = timm_backbone(SMALL, pretrained=False, strides=(8, 16)).train()
    assert backbone.channels == [48, 192]
    assert [tuple(x.shape[-2:]) for x in backbone(random_pixels(75, 107))] == [(10, 14), (5, 7)]
    loss_of(backbone, random_pixels(75, 107)).backward()
    assert all(p.grad is not None for p in backbone.parameters())
    assert not any("layer4" in name for name, _ in backbone.named_parameters())


def test_a_plain_vision_transformer_serves_one_stride() -> None:
    backbone = timm_backbone("test_vit", pretrained=False, strides=(16,)).eval()
    (x,) = backbone(random_pixels(75, 107))
    assert x.shape == (2, 64, 5, 7)
    with pytest.raises(UsageError) as error:
        timm_backbone("test_vit", pretrained=False, strides=STRIDES)
    assert "needs feature maps of stride 8, 16, 32, and test_vit has only maps of stride 16" in str(
        error.value
    )
    assert "convnext_tiny.fb_in22k" in error.value.remedy


@pytest.mark.parametrize(
    ("name", "strides", "reason"),
    [
        ("visformer_tiny", STRIDES, "Input height .* doesn't match model"),
        ("efficientformerv2_s0", STRIDES, "is invalid for input of size"),
        ("beit_base_patch16_224", (16,), "Input height .* doesn't match model"),
        ("inception_v3", STRIDES, "do not have the sizes 1/stride"),
    ],
)
def test_networks_for_one_image_size_are_refused(
    name: str, strides: tuple[int, ...], reason: str
) -> None:
    with pytest.raises(UsageError, match=f"{name} does not take images of all sizes: .*{reason}"):
        timm_backbone(name, pretrained=False, strides=strides)


def test_strides_that_are_not_in_order_are_refused() -> None:
    with pytest.raises(UsageError, match="strides go from fine to coarse, unlike 16, 8"):
        timm_backbone(SMALL, pretrained=False, strides=(16, 8))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("convnext_tinny", r"timm has no network 'convnext_tinny'(.|\n)*did you mean convnext_tin"),
        ("convnext_tiny.fb_in23k", "timm has no weights 'fb_in23k'.* convnext_tiny.fb_in22k"),
        ("hf-hub:timm/resnet18.a1_in1k", "timm has no network 'hf-hub:timm/resnet18.a1_in1k'"),
    ],
)
def test_unknown_names_are_refused(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        timm_backbone(name, pretrained=False, strides=STRIDES)


# Equality with ResNet-50


@pytest.mark.parametrize("dilated", [False, True])
def test_resnet50_equals_the_backbone_of_the_official_detectors(dilated: bool) -> None:
    """Bit for bit, and with the same trained parameters, without and with dilation (DC5)."""
    strides, levels = ((16,), (4,)) if dilated else (STRIDES, (2, 3, 4))
    exact = resnet50(pretrained=False, dilated=dilated, levels=levels)
    backbone = timm_backbone(
        "resnet50.tv_in1k", False, strides, frozen_stages=1, freeze_norms=True, dilated=dilated
    )
    randomised = timm.create_model("resnet50", num_classes=0)
    randomise_norms(randomised)
    for network in (exact.network, backbone.network.model):
        network.load_state_dict(randomised.state_dict(), strict=False)
    pixels = random_pixels(70, 97)
    with torch.inference_mode():
        maps = list(zip(backbone(pixels), exact(pixels), strict=True))
    assert all(torch.equal(x, expected) for x, expected in maps)
    assert backbone.channels == exact.channels
    trained = {name for name, p in exact.network.named_parameters() if p.requires_grad}
    model = backbone.network.model
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trained


def test_a_network_without_a_dilated_form_is_refused() -> None:
    with pytest.raises(UsageError, match="the last stage of pvt_v2_b0 cannot keep stride 16"):
        timm_backbone("pvt_v2_b0", pretrained=False, strides=(16,), dilated=True)


# Normalisation


def entering_pixels(backbone: Backbone, *inputs: Tensor | None) -> Tensor:
    """The images that enter timm's network."""
    entered: list[Tensor] = []
    hook = backbone.network.register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    backbone(*inputs)
    hook.remove()
    return entered[0]


def padded_images(seed: int = 0) -> tuple[Images, list[Tensor]]:
    """Images of two sizes, normalised as the datasets do, and their pixels in [0,1]."""
    generator = torch.Generator().manual_seed(seed)
    raw = [torch.rand(3, h, w, generator=generator) for h, w in ((64, 96), (50, 77))]
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    return Images.from_list([(x - mean.view(3, 1, 1)) / std.view(3, 1, 1) for x in raw]), raw


def test_a_network_with_other_constants_sees_images_normalised_by_them() -> None:
    """Here by 0.5 and 0.5, and zero in the padding."""
    backbone = shared_backbone(INCEPTION).eval()
    images, raw = padded_images()
    pixels = entering_pixels(backbone, images.pixels, images.padding)
    expected = Images.from_list([(x - 0.5) / 0.5 for x in raw]).pixels
    torch.testing.assert_close(pixels, expected, atol=1e-6, rtol=0)
    padding = images.padding.unsqueeze(1).expand_as(pixels)
    assert padding.any()
    assert (pixels[padding] == 0).all()


def test_detectors_pass_the_padding_on() -> None:
    class Detector(TinyConditionalDETR):
        def build_backbone(self) -> Backbone:
            return timm_backbone(INCEPTION, pretrained=False, strides=(16,))

    model = Detector(num_classes=3).build().eval()
    images, raw = padded_images()
    entered: list[Tensor] = []
    model.backbone.network.register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    model(images)
    expected = Images.from_list([(x - 0.5) / 0.5 for x in raw]).pixels
    torch.testing.assert_close(entered[0], expected, atol=1e-6, rtol=0)


def test_images_with_imagenet_constants_are_not_touched() -> None:
    backbone = shared_backbone("test_efficientnet").eval()
    images, _ = padded_images()
    assert backbone.normalisation is None
    assert torch.equal(entering_pixels(backbone, images.pixels, images.padding), images.pixels)


def test_images_of_cameras_change_from_bgr_to_rgb() -> None:
    """PETR's images have the order blue, green, red. They have no padding."""
    bgr = random_pixels(64, 96).unflatten(0, (1, 2))
    images = CameraImages.from_projections(bgr, torch.eye(4).expand(1, 2, 4, 4), torch.zeros(1))
    backbone = timm_backbone("test_efficientnet", False, (16, 32), bgr=True).eval()
    pixels = entering_pixels(backbone, images.pixels, images.padding)
    assert torch.equal(pixels, bgr[0].flip(1))


def test_the_constants_are_not_part_of_a_checkpoint() -> None:
    names = shared_backbone(INCEPTION).state_dict().keys()
    assert all(name.startswith("network.model.") for name in names)


# Weights


def classifier(name: str, seed: int = 3, **options: Any) -> nn.Module:
    """A classifier of timm whose weights and statistics are random."""
    torch.manual_seed(seed)
    network = timm.create_model(name, **options).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    randomise_norms(network)
    return network


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((SMALL, "pth"), ("test_convnext", "safetensors")),
        *(("test_efficientnet", "safetensors"), ("test_vit", "pth")),
    ],
)
def test_a_file_of_a_classifier_gives_its_features(name: str, kind: str, tmp_path: Path) -> None:
    """The classifier has other classes than those of the published weights."""
    source = classifier(name, num_classes=7)
    path = tmp_path / f"classifier.{kind}"
    if kind == "pth":
        # As training scripts save it, from a distributed model.
        state = {f"module.{key}": value for key, value in source.state_dict().items()}
        torch.save({"model": state, "epoch": 3}, path)
    else:
        save_file(source.state_dict(), path)
    strides = (16,) if name == "test_vit" else STRIDES
    backbone = timm_backbone(name, str(path), strides).eval()
    side = timm.get_pretrained_cfg(name).input_size[-1]
    pixels = random_pixels(side, side)
    expected = source.forward_intermediates(
        pixels, indices=backbone.network.indices, intermediates_only=True
    )
    for x, y in zip(backbone.network(pixels), expected, strict=True):
        torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-4)


def test_timm_converts_the_names_of_the_authors(tmp_path: Path) -> None:
    """Here those of ConvNeXt."""
    source = classifier("test_convnext")
    official = {}
    for name, value in source.state_dict().items():
        if name.startswith("stem."):
            name = name.replace("stem.", "downsample_layers.0.")
        parts = name.split(".")
        if parts[0] == "stages" and parts[2] == "downsample":
            name = ".".join(["downsample_layers", parts[1], *parts[3:]])
        name = name.replace(".blocks", "").replace("conv_dw", "dwconv")
        name = name.replace("mlp.fc", "pwconv").replace("head.fc", "head")
        official[name.replace("head.norm", "norm")] = value
    torch.save({"model": official}, tmp_path / "convnext.pth")
    backbone = timm_backbone("test_convnext", str(tmp_path / "convnext.pth"), STRIDES)
    state = source.state_dict()
    for name, value in backbone.network.model.state_dict().items():
        assert torch.equal(value, state[name]), name


@pytest.mark.parametrize(
    ("removed", "added", "message"),
    [
        ("layer3.0.conv2.weight", "", r"the file has no layer3\.0\.conv2\.weight"),
        ("layer2.0.bn1.running_var", "", r"the file has no layer2\.0\.bn1\.running_var"),
        ("", "layer3.1.conv1.weight", r"the backbone has no layer3\.1\.conv1\.weight"),
        ("", "layer3.0.conv1.weight", "not weights of test_resnet: size mismatch for layer3.0.co"),
    ],
)
def test_files_of_other_networks_are_refused(
    removed: str, added: str, message: str, tmp_path: Path
) -> None:
    """A deeper and a shallower ResNet, and a wider one."""
    state = timm.create_model(SMALL).state_dict()
    if removed:
        del state[removed]
    if added:
        state[added] = torch.ones(3, 3, 3, 3)
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match=message):
        timm_backbone(SMALL, str(tmp_path / "other.safetensors"), STRIDES)


def test_parts_that_only_a_classifier_or_an_autoencoder_has_are_ignored(tmp_path: Path) -> None:
    state = timm.create_model(SMALL).state_dict()
    state["decoder.weight"] = torch.ones(3)
    save_file(state, tmp_path / "autoencoder.safetensors")
    backbone = timm_backbone(SMALL, str(tmp_path / "autoencoder.safetensors"), STRIDES)
    assert torch.equal(
        backbone.network.model.layer1[0].conv1.weight, state["layer1.0.conv1.weight"]
    )


def test_loading_leaves_torch_as_it_was(tmp_path: Path) -> None:
    original = nn.Module.load_state_dict
    with pytest.raises(WeightsError, match="there is no such weights file"):
        timm_backbone(SMALL, str(tmp_path / "none.pth"), STRIDES)
    assert nn.Module.load_state_dict is original
    with pytest.raises(RuntimeError, match="Missing key"):
        timm.create_model(SMALL).load_state_dict({})


@pytest.fixture
def offline_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of the Hugging Face hub, which is empty, on a machine without a network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_weights_come_from_the_hub(offline_hub: Path) -> None:
    """Here from its cache, to which they were downloaded before."""
    repository = offline_hub / "models--timm--test_resnet.r160_in1k"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("0" * 40)
    source = classifier("test_resnet.r160_in1k")
    save_file(source.state_dict(), snapshot / "model.safetensors")
    backbone = timm_backbone("test_resnet.r160_in1k", pretrained=True, strides=STRIDES)
    for name, value in backbone.network.model.state_dict().items():
        assert torch.equal(value, source.state_dict()[name]), name


@pytest.mark.usefixtures("offline_hub")
def test_weights_that_cannot_be_downloaded_are_reported() -> None:
    with pytest.raises(
        WeightsError, match=r"the weights of test_resnet\.r160_in1k could not be downloaded"
    ):
        timm_backbone("test_resnet.r160_in1k", pretrained=True, strides=STRIDES)


@pytest.mark.parametrize("create", [timm_backbone, create_network])
def test_without_a_network_weights_are_missed_after_a_moment(
    create: Any, no_network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By both ways to timm's weights. timm alone tries again for almost a minute."""
    options = {"strides": STRIDES} if create is timm_backbone else {"layouts": ()}
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    with pytest.raises(WeightsError, match="cannot be reached") as refused:
        create("test_resnet.r160_in1k", pretrained=True, **options)
    assert sum(waits) < 5
    assert "the weights of test_resnet.r160_in1k could not be downloaded" in refused.value.what
    assert refused.value.where == f"timm/test_resnet.r160_in1k, revision main; cache: {no_network}"
    for text in ("hf download timm/test_resnet.r160_in1k", "--pretrained-backbone FILE"):
        assert text in refused.value.remedy


@pytest.mark.parametrize("create", [timm_backbone, create_network])
def test_without_pretrained_weights_nothing_is_asked_of_the_hub(
    create: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "is_reachable", lambda: pytest.fail("it was asked"))
    options = {"strides": STRIDES} if create is timm_backbone else {"layouts": ()}
    assert create("test_resnet.r160_in1k", pretrained=False, **options) is not None


def test_a_name_without_published_weights_is_refused() -> None:
    with pytest.raises(WeightsError, match="timm has no pretrained weights of starnet_s050"):
        timm_backbone("starnet_s050", pretrained=True, strides=STRIDES)


# Frozen parts


def trained_parts(backbone: Backbone) -> set[str]:
    """The first two parts of the names of trained parameters, such as "stages.0"."""
    names = [name for name, p in backbone.network.model.named_parameters() if p.requires_grad]
    return {".".join(name.split(".")[:2]) for name in names}


@pytest.mark.parametrize(
    ("name", "frozen_stages", "frozen"),
    [
        ("test_convnext", -1, set()),
        ("test_convnext", 1, {"stem.0", "stem.1", "stages.0"}),
        ("test_convnext", 3, {"stem.0", "stem.1", "stages.0", "stages.1", "stages.2"}),
        # The map of stride 2 is that of block 0.
        ("test_efficientnet", 0, {"conv_stem.weight", "bn1.weight", "bn1.bias", "blocks.0"}),
        ("swin_tiny_patch4_window7_224", 1, {"patch_embed.proj", "patch_embed.norm", "layers.0"}),
    ],
)
def test_the_stem_and_the_first_stages_are_not_trained(
    name: str, frozen_stages: int, frozen: set[str]
) -> None:
    backbone = timm_backbone(name, False, STRIDES, frozen_stages=frozen_stages)
    assert trained_parts(shared_backbone(name)) - trained_parts(backbone) == frozen
    loss_of(backbone.train(), random_pixels(64, 64)).backward()
    for parameter in backbone.parameters():
        assert (parameter.grad is not None) == parameter.requires_grad


def test_frozen_batch_norms_keep_their_statistics_in_training() -> None:
    """Batch norms of trained stages update theirs, and setting the mode again changes nothing."""
    backbone = timm_backbone(SMALL, False, STRIDES, frozen_stages=2).eval().train()
    before = {name: value.clone() for name, value in backbone.network.model.state_dict().items()}
    loss_of(backbone, random_pixels(64, 64)).backward()
    changed = set()
    for name, value in backbone.network.model.state_dict().items():
        if not torch.equal(value, before[name]):
            changed.add(name.split(".")[0])
    assert changed == {"layer3", "layer4"}
    assert all(not module.training for module in backbone.network.model.layer2.modules())


def test_a_number_of_stages_that_a_network_does_not_have_is_refused() -> None:
    with pytest.raises(UsageError, match="frozen_stages is 5, and test_resnet has 4 stages"):
        timm_backbone(SMALL, False, STRIDES, frozen_stages=5)


@pytest.mark.parametrize("name", ["resnet18", "resnet18d", "test_efficientnet", "resnest14d"])
def test_frozen_batch_norms_equal_batch_norms_in_evaluation(name: str) -> None:
    """Folded into convolutions, or with an activation of their own, or in unusual blocks."""
    plain = timm_backbone(name, False, STRIDES).eval()
    frozen = timm_backbone(name, False, STRIDES, freeze_norms=True).train()
    randomise_norms(plain)
    frozen.load_state_dict(plain.state_dict(), strict=False)
    pixels = random_pixels(64, 96)
    before = {key: value.clone() for key, value in frozen.state_dict().items()}
    with torch.no_grad():
        for x, expected in zip(frozen(pixels), plain(pixels), strict=True):
            assert (x - expected).abs().max() < 1e-4 * expected.abs().max()
    assert all(torch.equal(value, before[key]) for key, value in frozen.state_dict().items())


# Training


@pytest.mark.parametrize("name", [SMALL, "test_convnext", "pvt_v2_b0"])
def test_recomputing_gives_the_same_gradients(name: str) -> None:
    plain = timm_backbone(name, False, STRIDES, freeze_norms=True).train()
    recomputing = timm_backbone(name, False, STRIDES, freeze_norms=True, recompute=True).train()
    recomputing.load_state_dict(plain.state_dict())
    kept = []
    for backbone in (plain, recomputing):
        sizes: list[int] = []

        def count(x: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
            loss = loss_of(backbone, random_pixels(64, 96))
        kept.append(sum(sizes))
        loss.backward()
    assert kept[1] < 0.7 * kept[0], "fewer activations are kept"
    for (key, a), b in zip(plain.named_parameters(), recomputing.parameters(), strict=True):
        assert (a.grad is not None) == a.requires_grad, key
        torch.testing.assert_close(b.grad, a.grad, msg=key)


@pytest.mark.parametrize("name", [SMALL, "test_convnext", "swin_tiny_patch4_window7_224"])
def test_learning_rates_can_decay_from_stage_to_stage(name: str) -> None:
    """The last of four stages has the factor d, the first one d**4, and the stem d**5."""
    backbone = shared_backbone(name)
    assert backbone.supports_layer_decay
    factors = {key: backbone.lr_factor(key, 0.5) for key, _ in backbone.named_parameters()}
    assert set(factors.values()) == {0.5**i for i in range(1, 6)}
    last_stage = {SMALL: "layer4", "test_convnext": "stages.3"}.get(name, "layers.3")
    for key, factor in factors.items():
        assert (factor == 0.5) == key.startswith(f"network.model.{last_stage}."), key
    assert factors[next(iter(factors))] == 0.5**5


def test_a_copy_computes_the_same() -> None:
    """The moving average of the weights is a copy."""
    backbone = shared_backbone("swin_tiny_patch4_window7_224").eval()
    duplicate = copy.deepcopy(backbone)
    pixels = random_pixels(64, 75)
    with torch.inference_mode():
        assert all(
            torch.equal(a, b) for a, b in zip(backbone(pixels), duplicate(pixels), strict=True)
        )


def test_a_backbone_can_be_created_without_memory() -> None:
    with torch.device("meta"):
        backbone = timm_backbone("convnext_xlarge.fb_in22k", False, STRIDES, frozen_stages=1)
        maps = backbone(torch.zeros(1, 3, 75, 107))
    assert [tuple(x.shape[1:]) for x in maps] == [(512, 10, 14), (1024, 5, 7), (2048, 3, 4)]
    assert all(p.is_meta for p in backbone.parameters())
