"""Weights are written under the names of others by the same tables that read them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from groupdetr.checkpoints.checkpoint import Checkpoint
from groupdetr.checkpoints.layout import Layout
from groupdetr.checkpoints.native import unique_state
from groupdetr.detectors.conditional_detr import ConditionalDETR
from groupdetr.detectors.dab_deformable_detr import DABDeformableDETR
from groupdetr.detectors.dino import DINO
from groupdetr.detectors.recipe import Recipe
from groupdetr.detectors.tiny import TinyConditionalDETR, TinyDABDETR, TinyDNDETR, TinyMask2Former
from groupdetr.errors import UsageError
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.registry import experiment
from groupdetr.weights.detrex_dino import DETREX_DINO
from groupdetr.weights.huggingface_conditional_detr import HUGGING_FACE
from groupdetr.weights.huggingface_dab_detr import HUGGING_FACE_DAB
from groupdetr.weights.huggingface_mask2former import HUGGING_FACE_MASK2FORMER
from groupdetr.weights.loading import load_weights
from groupdetr.weights.official_conditional_detr import OFFICIAL
from groupdetr.weights.official_dab_detr import OFFICIAL_DAB, OFFICIAL_DN
from groupdetr.weights.official_deformable import OFFICIAL_DAB_DEFORMABLE, OFFICIAL_DINO
from groupdetr.weights.official_mask2former import OFFICIAL_MASK2FORMER
from groupdetr.weights.official_petr import OFFICIAL_PETR
from groupdetr.weights.writing import all_groups_state, find_target, one_group_state

from .conftest import SIZES, dab_state, official_state
from .deformable import dab_deformable_state, detrex_state, dino_state
from .mask2former import mask2former_state
from .petr import petr_state
from .test_deformable import DAB as DAB_DEFORMABLE
from .test_deformable import DETREX, DINO_TINY
from .test_mask2former import SMALL as MASK2FORMER
from .test_petr import SMALL as SMALL_PETR
from .test_petr import SmallPETR, SmallPETRv2

GROUPS: dict[str, Any] = {"num_classes": 5, "num_groups": 3, "num_queries": 4, **SIZES}
CONDITIONAL, DAB = TinyConditionalDETR(**GROUPS), TinyDABDETR(**GROUPS)
# (recipe, the names of its authors written by hand, layout)
OFFICIAL_CASES = [
    pytest.param(CONDITIONAL, official_state, OFFICIAL, id="conditional"),
    pytest.param(DAB, dab_state, OFFICIAL_DAB, id="dab"),
    pytest.param(replace(DAB, num_patterns=2), dab_state, OFFICIAL_DAB, id="dab-2-patterns"),
    pytest.param(TinyDNDETR(**GROUPS), dab_state, OFFICIAL_DN, id="dn"),
    pytest.param(
        replace(DAB_DEFORMABLE, num_groups=3),
        dab_deformable_state,
        OFFICIAL_DAB_DEFORMABLE,
        id="dab-deformable",
    ),
    pytest.param(DINO_TINY, dino_state, OFFICIAL_DINO, id="dino"),
    pytest.param(DETREX, detrex_state, DETREX_DINO, id="detrex"),
    pytest.param(MASK2FORMER, mask2former_state, OFFICIAL_MASK2FORMER, id="mask2former"),
    pytest.param(SmallPETR(**SMALL_PETR), petr_state, OFFICIAL_PETR, id="petr"),
    pytest.param(SmallPETRv2(**SMALL_PETR), petr_state, OFFICIAL_PETR, id="petrv2"),
]
HUGGING_FACE_CASES = [
    pytest.param(CONDITIONAL, HUGGING_FACE, id="conditional"),
    pytest.param(DAB, HUGGING_FACE_DAB, id="dab"),
    pytest.param(TinyMask2Former(num_groups=3), HUGGING_FACE_MASK2FORMER, id="mask2former"),
]
# Values that their code computes from the sizes, or that no model reads.
VALUES_OF_THEIRS = ("criterion.empty_weight", "pts_bbox_head.code_weights")


def build(recipe: Recipe) -> DetectionTransformer:
    torch.manual_seed(0)
    return recipe.build()


def flat_state(model: DetectionTransformer, layout: Layout) -> dict[str, Tensor]:
    """The tensors of all groups, or of the only one where groups are more than rows."""
    if model.recipe.num_groups == 1:
        return one_group_state(model, layout)
    return all_groups_state(model, layout, "here")


@pytest.mark.parametrize(("recipe", "expected", "layout"), OFFICIAL_CASES)
def test_the_authors_names_are_written(
    recipe: Recipe, expected: Callable[[DetectionTransformer], dict[str, Tensor]], layout: Layout
) -> None:
    model = build(recipe)
    theirs, by_hand = layout.revert(flat_state(model, layout)), expected(model)
    # Norms that are not frozen count batches, and files do not have these counters.
    names = {name for name in by_hand if not name.endswith("num_batches_tracked")}
    assert theirs.keys() == names
    for name in names.difference(VALUES_OF_THEIRS):
        assert torch.equal(theirs[name], by_hand[name]), name


@pytest.mark.parametrize(("recipe", "layout"), HUGGING_FACE_CASES)
def test_what_is_written_is_read_again(recipe: Recipe, layout: Layout) -> None:
    model = build(recipe)
    state = flat_state(model, layout)
    theirs = layout.revert(state)
    assert layout.fits(theirs)
    again = layout.convert(Checkpoint(theirs, {}, "test")).state
    expected = unique_state(model).keys()
    assert {name for name in expected if not name.endswith("num_batches_tracked")} == again.keys()
    assert all(torch.equal(value, state[name]) for name, value in again.items())


def test_the_weights_of_the_loss_are_those_of_the_published_configurations() -> None:
    theirs = OFFICIAL_MASK2FORMER.revert(one_group_state(build(MASK2FORMER), OFFICIAL_MASK2FORMER))
    weights = theirs["criterion.empty_weight"]
    assert weights.tolist() == pytest.approx([1.0] * MASK2FORMER.num_classes + [0.1])


@pytest.mark.parametrize("group", [0, 2])
def test_one_group_is_the_one_that_answers(group: int) -> None:
    model = build(replace(CONDITIONAL, inference_group=group))
    embedding = model.queries.embedding
    assert torch.equal(one_group_state(model, OFFICIAL)["queries.embedding"], embedding[group])


def test_the_group_that_answers_is_the_first_of_all_groups() -> None:
    """The code of others answers with the first group."""
    model = build(replace(CONDITIONAL, inference_group=2))
    rows = all_groups_state(model, OFFICIAL, "here")["queries.embedding"]
    groups = rows.unflatten(0, (GROUPS["num_groups"], -1))
    assert torch.equal(groups, model.queries.embedding[[2, 1, 0]])


def test_groups_with_heads_of_their_own_cannot_all_be_written() -> None:
    model = build(replace(DINO_TINY, num_groups=2))
    with pytest.raises(UsageError, match="DINO cannot have all groups") as refused:
        all_groups_state(model, OFFICIAL_DINO, "here")
    assert "--all-groups" in refused.value.remedy


def test_a_file_of_others_fills_a_network_of_timm(tmp_path: Any) -> None:
    """It is inside of a module of ours. ResNet-50 with norms that are trained is such a network."""
    sizes = {**GROUPS, "pretrained_backbone": False}
    frozen = build(ConditionalDETR(**sizes))
    torch.save(OFFICIAL.revert(one_group_state(frozen, OFFICIAL)), tmp_path / "weights.pth")
    trained = build(ConditionalDETR(**sizes, freeze_norms=False))
    load_weights(trained, tmp_path / "weights.pth", file_groups=1)
    weight = trained.backbone.network.get_parameter("model.conv1.weight")
    assert torch.equal(weight, frozen.backbone.network.get_parameter("conv1.weight"))


def preset(name: str, **options: Any) -> Recipe:
    return experiment(name).recipe.with_options(**options)


@pytest.mark.parametrize(
    ("recipe", "format", "layout"),
    [
        (preset("conditional-detr-r50"), "transformers", HUGGING_FACE),
        (preset("conditional-detr-r50-dc5"), "official", OFFICIAL),
        (preset("conditional-detr-lite", offset=0.0), "transformers", HUGGING_FACE),
        (preset("dab-detr-r50"), "transformers", HUGGING_FACE_DAB),
        (preset("dn-detr-r50"), "official", OFFICIAL_DN),
        (preset("mask2former-lite"), "transformers", HUGGING_FACE_MASK2FORMER),
        (preset("dino-4scale-r50"), "official", OFFICIAL_DINO),
        (preset("dino-4scale-swin-l"), "official", OFFICIAL_DINO),
        (
            preset("dino-4scale-r50", shared_heads=False, temperature=10000.0, offset=-0.5),
            "official",
            DETREX_DINO,
        ),
        (preset("petr-v99"), "official", OFFICIAL_PETR),
        (preset("petrv2-v99"), "official", OFFICIAL_PETR),
    ],
)
def test_a_detector_has_the_layout_of_its_paper(
    recipe: Recipe, format: Any, layout: Layout
) -> None:
    assert find_target(recipe, format, "here").layout is layout


@pytest.mark.parametrize(
    ("recipe", "format", "what", "remedy"),
    [
        (
            preset("conditional-detr-lite"),
            "transformers",
            "Hugging Face's Conditional DETR has offset 0.0, and this detector was trained with",
            "--set offset=0.0",
        ),
        (
            preset("conditional-detr-lite", offset=0.0, strides=(32,)),
            "official",
            "has no backbone tf_efficientnet_lite0.in1k",
            "--backbone resnet50.tv_in1k",
        ),
        (preset("dn-detr-r50"), "transformers", "transformers has no DN-DETR", "--format"),
        (
            preset("dab-deformable-detr-r50"),
            "transformers",
            "the positions of the queries are learned",
            "--format",
        ),
        (preset("dino-4scale-r50"), "transformers", "transformers has no DINO", "--format"),
        (preset("dino-vit-tiny"), "official", "the code of Group DETR v2", "--format"),
        (
            preset("dab-detr-r50", temperature=20.5),
            "transformers",
            "a whole number as temperature",
            "--format",
        ),
        (
            preset("conditional-detr-r50", num_groups=3, inference_group=None),
            "official",
            "all groups of this detector answer together",
            "--set inference_group=0",
        ),
        (
            preset("dino-4scale-r50", shared_heads=False),
            "official",
            "the authors' DINO has shared_heads true",
            "--set shared_heads=true",
        ),
        (
            preset("rf-detr-micro"),
            "official",
            "Roboflow's RF-DETR has vit_depth 12",
            "--set vit_depth=12",
        ),
        (
            preset("dab-detr-r50", reference_update="keep_reference"),
            "official",
            "reference_update look_forward_twice, and this detector was trained with keep_",
            "--set reference_update=look_forward_twice",
        ),
        (
            preset("dino-4scale-r50", reference_update="refine_boxes"),
            "official",
            "reference_update",
            "--set reference_update=look_forward_twice",
        ),
        (
            preset("dab-deformable-detr-r50", reference_update="keep_reference"),
            "official",
            "every layer refines the boxes",
            "--format",
        ),
        (
            preset("rf-detr-nano", vit_heads=12),
            "official",
            "384, 768 channels with 64 of each head",
            "--format",
        ),
        (
            preset("rf-detr-nano", global_blocks=(2, 5, 8, 11)),
            "transformers",
            r"its blocks \[3,6,9\] attend globally, and those of this detector \[2,5,8,11\]",
            "--format",
        ),
        (
            preset("lw-detr-tiny", vit_width=96),
            "official",
            "backbones of 192, 384, 768 channels, and this one has 96",
            "--format",
        ),
    ],
)
def test_what_the_code_of_others_cannot_compute_is_refused_by_name(
    recipe: Recipe, format: Any, what: str, remedy: str
) -> None:
    with pytest.raises(UsageError, match=what) as refused:
        find_target(recipe, format, "here")
    assert remedy in refused.value.remedy


def test_a_detector_from_outside_of_this_library_is_refused() -> None:
    class Other(Recipe):
        pass

    for recipe in (Other(), DABDeformableDETR(), DINO()):
        with pytest.raises(UsageError, match="cannot be written in the format transformers"):
            find_target(recipe, "transformers", "here")
