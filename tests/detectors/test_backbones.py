"""The backbone is a field of every recipe: another one of timm, or one of your own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import groupdetr
from groupdetr.checkpoints import native
from groupdetr.errors import UsageError
from groupdetr.modeling.backbones import registry as backbones
from groupdetr.modeling.backbones.backbone import Backbone
from groupdetr.modeling.backbones.registry import BackboneOptions, register_backbone
from groupdetr.registry import experiment, recipe_to_dict
from tests.runs import TINY_PRESETS, train

# Of any number, also unordered, repeated and unknown ones
STRIDES = [
    *([], [2], [4], [8], [16], [32], [64], [3], [0], [-8], [8.0], [True], ["8"]),
    *([4, 8], [8, 16], [16, 32], [8, 32], [16, 8], [16, 16], [8, 16, 32], [4, 8, 16]),
    *([4, 8, 16, 32], [8, 16, 32, 64], [2, 4, 8, 16, 32], [4, 8, 16, 32, 64]),
]


@pytest.mark.parametrize("preset", TINY_PRESETS)
def test_every_detector_takes_a_network_of_timm(preset: str) -> None:
    """The outputs are finite, every parameter that is trained has a gradient, and it is saved."""
    torch.manual_seed(0)
    # Its maps have layer norms in one case, and batch norms in the other.
    convnext, regnet = "convnext_atto.d2_in1k", "regnetx_002.pycls_in1k"
    backbone = convnext if TINY_PRESETS.index(preset) % 2 else regnet
    model = groupdetr.create_model(
        preset, backbone=backbone, frozen_stages=0, freeze_norms=True, num_groups=2, num_classes=3
    )
    outputs = model(model.recipe.example_images(64))
    final = outputs.final
    (final.logits.sum() + final.location.sum()).backward()
    assert final.logits.isfinite().all()
    trained = [p for p in model.backbone.parameters() if p.requires_grad]
    assert trained
    # The finest maps of Mask2Former are for masks, which are not computed here.
    if preset != "mask2former-tiny":
        assert all(parameter.grad is not None for parameter in trained)
    saved = recipe_to_dict(model.recipe)
    assert (saved["backbone"], saved["frozen_stages"]) == (backbone, 0)


def test_the_maps_of_a_backbone_must_have_the_strides_of_the_detector() -> None:
    with pytest.raises(UsageError, match="stride"):
        groupdetr.create_model("dino-tiny", backbone="vit_tiny_patch16_224")
    with pytest.raises(UsageError, match="timm has no network 'convnxt_tiny'") as error:
        groupdetr.create_model("dino-tiny", backbone="convnxt_tiny")
    assert "convnext_tiny" in str(error.value.remedy)


def test_dilation_and_frozen_stages_of_the_published_backbones() -> None:
    """Frozen parts have no gradient, and DC5 doubles the size of the last map."""
    for stages, expected in ((-1, []), (0, ["conv1"]), (2, ["conv1", "layer1", "layer2"])):
        with torch.device("meta"):
            model = groupdetr.create_model("conditional-detr-r50", frozen_stages=stages)
        frozen = {
            name.removeprefix("network.").split(".")[0]
            for name, parameter in model.backbone.named_parameters()
            if not parameter.requires_grad
        }
        # Frozen batch norms have no parameters that are trained in any case.
        assert sorted(frozen - {"bn1"}) == expected
    with pytest.raises(UsageError, match="frozen_stages is 9"):
        groupdetr.create_model("conditional-detr-r50", frozen_stages=9)
    with pytest.raises(UsageError, match="frozen_stages is 3, and the backbone has 2 stages"):
        groupdetr.create_model("conditional-detr-r50", strides=[8], frozen_stages=3)
    with pytest.raises(UsageError, match="has no dilated form"):
        groupdetr.create_model("conditional-detr-r50", dilated=True, backbone=backbones.SWIN_LARGE)
    with pytest.raises(UsageError, match=r"last map at stride 16 in place of 32, .* is \[8\]"):
        groupdetr.create_model("conditional-detr-r50", dilated=True, strides=[8])


def test_frozen_stages_are_in_evaluation_mode_from_the_beginning() -> None:
    """Otherwise the stochastic depth of a new model would change features that are not trained."""
    model = groupdetr.create_model("dino-vit-tiny", frozen_stages=2)
    first, second, third, *_ = model.backbone.network.get_submodule("vit.blocks")
    assert (first.training, second.training, third.training) == (False, False, True)
    assert model.backbone.training


@pytest.mark.parametrize("preset", TINY_PRESETS)
def test_every_detector_builds_a_network_for_its_strides_or_says_which_it_needs(
    preset: str,
) -> None:
    usual = list(experiment(preset).recipe.strides)
    built = []
    refusals = []
    for strides in STRIDES:
        try:
            model = groupdetr.create_model(preset, strides=strides, num_groups=1, num_classes=3)
        except UsageError as error:
            refusals.append(error)
        else:
            built.append(strides)
            assert model(model.recipe.example_images(64)).final.logits.isfinite().all()
    assert usual in built
    for refused in refusals:
        assert f"strides={usual}" in refused.remedy or "have strides [" in refused.what


@pytest.mark.parametrize(
    ("preset", "options", "needed"),
    [
        ("petr-tiny", {"strides": [16]}, "2 feature maps"),
        ("petr-tiny", {"strides": [8, 16, 32]}, "2 feature maps"),
        ("mask2former-tiny", {"strides": [16]}, "4 feature maps"),
        ("mask2former-tiny", {"strides": [4, 8, 16]}, "4 feature maps"),
        ("mask2former-tiny", {"num_levels": 2}, "3 feature maps"),
        ("conditional-detr-tiny", {"strides": [8, 16]}, "1 feature map"),
        ("dino-tiny", {"num_levels": 1}, "1 feature map"),
        ("dino-vit-tiny", {"num_levels": 5}, "5 feature maps"),
    ],
)
def test_the_error_for_strides_says_how_many_the_detector_needs(
    preset: str, options: dict[str, object], needed: str
) -> None:
    with pytest.raises(UsageError, match=f"{preset} needs the strides of {needed} of its backbone"):
        groupdetr.create_model(preset, **options)


class TwoConvolutions(nn.Module):
    """A map of stride 8."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=4, padding=1)
        self.second = nn.Conv2d(8, 12, 3, stride=2, padding=1)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        return [self.second(self.first(pixels).relu())]


def build_two_convolutions(options: BackboneOptions) -> Backbone:
    if options.strides != (8,):
        raise UsageError("this backbone has a map of stride 8 only")
    return Backbone(TwoConvolutions(), channels=[12])


def test_a_backbone_of_ones_own_is_trained_saved_and_loaded(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backbones, "_BACKBONES", dict(backbones._BACKBONES))
    register_backbone("two-convolutions", build_two_convolutions)
    options = ["--backbone", "two-convolutions", "--steps", "2"]
    run = train(shapes, tmp_path / "run", *options)
    detector = groupdetr.Detector(run)
    assert isinstance(detector.model.backbone.network, TwoConvolutions)
    tensors, _ = native.read(detector.path)
    name = "backbone.network.second.weight"
    assert torch.equal(detector.model.state_dict()[name].cpu(), tensors[name])
    # Without the code of the backbone the file is refused, with the name that is missing.
    monkeypatch.setattr(backbones, "_BACKBONES", {})
    with pytest.raises(UsageError, match="two-convolutions"):
        groupdetr.Detector(run)


def test_the_option_backbone_is_the_field(shapes: Path, tmp_path: Path) -> None:
    """A run with another backbone resumes with it."""
    options = ["--backbone", "convnext_atto.d2_in1k", "--pretrained-backbone", "none"]
    run = train(shapes, tmp_path / "run", *options, "--steps", "2", "--stop-after", "1")
    result = groupdetr.train(resume=run)
    assert not result.interrupted
    recipe = groupdetr.Detector(result.path).recipe
    assert recipe.backbone == "convnext_atto.d2_in1k"
    assert recipe.pretrained_backbone is False
    assert experiment("conditional-detr-tiny").recipe.backbone == backbones.SMALL_RESNET
