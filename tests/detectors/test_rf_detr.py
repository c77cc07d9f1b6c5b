"""LW-DETR and RF-DETR: images with few tokens, learned offsets, published sizes, licences."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import groupdetr
from groupdetr.detectors.lw_detr import LWDETR
from groupdetr.detectors.rf_detr import RFDETR
from groupdetr.detectors.tiny import MicroRFDETR, MicroRFDETRSeg
from groupdetr.errors import UsageError
from groupdetr.ops.boxes import move_boxes
from groupdetr.structures.images import Images
from groupdetr.structures.targets import Target

# Parameters with 13 groups and with the one that runs at inference, of the published models. In
# files, RF-DETR has one more token, which masks patches in the training of DINOv2.
PARAMETERS = {
    "lw-detr-tiny": (12_052_002, 9_072_366, 0),
    "lw-detr-small": (14_557_378, 10_953_742, 0),
    "lw-detr-medium": (28_237_378, 24_633_742, 0),
    "lw-detr-large": (46_823_650, 39_656_494, 0),
    "lw-detr-xlarge": (118_033_378, 110_866_222, 0),
    "rf-detr-nano": (30_467_298, 26_863_662, 384),
    "rf-detr-small": (32_111_170, 28_507_534, 384),
    "rf-detr-medium": (33_687_458, 30_083_822, 384),
    "rf-detr-large": (33_933_218, 30_329_582, 384),
    "rf-detr-base": (32_174_530, 28_570_894, 384),
    "rf-detr-large-deprecated": (135_637_474, 128_470_318, 768),
    "rf-detr-seg-nano": (33_577_475, 30_597_839, 384),
    "rf-detr-seg-small": (33_711_107, 30_731_471, 384),
    "rf-detr-seg-medium": (35_694_259, 32_402_623, 384),
    "rf-detr-seg-large": (35_873_971, 32_582_335, 384),
    "rf-detr-seg-xlarge": (38_113_635, 34_509_999, 384),
    "rf-detr-seg-2xlarge": (38_648_163, 35_044_527, 384),
    "rf-detr-seg-preview": (34_153_555, 30_861_919, 384),
}
TARGETS = [Target(torch.tensor([1]), torch.tensor([[0.5, 0.5, 0.3, 0.3]]))]
# Nano with fewer channels
NARROW: dict[str, Any] = {
    "num_classes": 3,
    "channels": 32,
    "num_heads": 2,
    "cross_attention_heads": 4,
    "dim_feedforward": 32,
    "vit_width": 24,
    "vit_heads": 2,
    "vit_depth": 4,
    "global_blocks": (2,),
    "map_blocks": (1, 3),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts_are_those_of_the_published_models(name: str) -> None:
    of_13_groups, of_one_group, mask_token = PARAMETERS[name]
    with torch.device("meta"):
        for num_groups, expected in ((13, of_13_groups), (1, of_one_group)):
            model = groupdetr.create_model(name, num_groups=num_groups)
            assert sum(p.numel() for p in model.parameters()) == expected - mask_token


@pytest.mark.parametrize(("side", "tokens"), [(224, 196), (256, 256)])
def test_with_fewer_tokens_than_queries_every_group_has_its_own_first_rows(
    side: int, tokens: int
) -> None:
    """rfdetr 1.11.2 mixes the groups at these two sizes of its default training of nano."""
    torch.manual_seed(0)
    model = RFDETR(**NARROW, num_groups=3).build().train()
    with torch.no_grad():
        model.queries.learned_offset.normal_(std=0.2)
    images = Images.from_list([torch.randn(3, side, side)])
    outputs = model(images, TARGETS)
    queries = outputs.queries
    assert queries is not None
    assert queries.proposals is not None
    assert queries.content.shape == (1, 3, tokens, 32)
    for group in range(3):
        assert torch.equal(queries.content[0, group], model.queries.embedding[group, :tokens])
        moved = move_boxes(
            queries.proposals.boxes[0, group].detach(),
            model.queries.learned_offset[group, :tokens],
        )
        assert torch.equal(queries.reference[0, group], moved)
    assert (queries.reference[..., 2:] > 0.01).all(), "every reference has a size"
    losses = model.recipe.criterion()(outputs, TARGETS)
    assert all(loss.isfinite() for loss in losses.values())


def test_the_decoder_trains_learned_offsets_but_not_the_proposals() -> None:
    torch.manual_seed(0)
    model = MicroRFDETR(num_classes=3, num_groups=2, num_queries=5).build().train()
    with torch.no_grad():
        # The last layers of box heads start at zero.
        model.decoder.heads[0].regress.layers[-1].weight.normal_(std=0.1)
    outputs = model(Images.from_list([torch.randn(3, 64, 64)]))
    boxes = outputs.layers[-1].boxes.sum()
    heads = model.queries.heads
    parameters = [model.queries.learned_offset, heads.project.weight, heads.regress[2].weight]
    offset, *others = torch.autograd.grad(boxes, parameters, allow_unused=True)
    assert (offset.abs().sum((1, 2)) > 0).all(), "of both groups"
    assert others == [None, None]


@pytest.mark.parametrize("levels", [("P4",), ("P3", "P5")])
def test_mask_features_have_a_quarter_of_the_image_whatever_the_levels_are(
    levels: tuple[str, ...],
) -> None:
    recipe = MicroRFDETRSeg(num_classes=3, decoder_layers=1, projector_levels=levels)
    model = recipe.build().eval()
    with torch.no_grad():
        predictions = model(Images(torch.rand(1, 3, 64, 96), torch.zeros(1, 64, 96).bool())).final
    assert predictions.masks.mask_features.pixels.shape[-2:] == (16, 24)


def test_groups_start_with_equal_heads_and_different_projections() -> None:
    heads = MicroRFDETR(num_groups=3).build_queries().heads
    for layer in (heads.classify, *heads.regress):
        assert torch.equal(layer.weight[0], layer.weight[2])
    assert not torch.equal(heads.project.weight[0], heads.project.weight[2])


@pytest.mark.parametrize("size", ["xl", "xlarge", "2xl", "2xlarge"])
def test_models_that_are_not_free_are_named(size: str) -> None:
    with pytest.raises(UsageError, match=r"not an open-source licence"):
        groupdetr.create_model(f"rf-detr-{size}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"projector_levels": ("P5", "P3")}, "projector_levels must be some of P3, P4, P5 in this"),
        ({"projector_levels": ()}, "projector_levels must be some of"),
        ({"map_blocks": (1, 6)}, "map_blocks has 6, and the blocks are 0 to 5"),
        ({"map_blocks": (3, 1)}, "map_blocks must be in rising order"),
        ({"vit_heads": 7}, "192 channels cannot be split into 7 vit_heads"),
        ({"cross_attention_heads": 7}, "256 channels cannot be split into 7"),
    ],
)
def test_impossible_sizes_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LWDETR(**options)


def test_another_backbone_serves_with_one_map_of_stride_16() -> None:
    """Its images need not have whole windows."""
    recipe = MicroRFDETR(
        num_classes=3, num_groups=2, num_queries=5, backbone="small_resnet", strides=(16,)
    )
    assert recipe.size_divisor == 1
    outputs = recipe.build().eval()(Images.from_list([torch.randn(3, 70, 90)]))
    assert outputs.final.boxes.shape == (1, 5, 4)
