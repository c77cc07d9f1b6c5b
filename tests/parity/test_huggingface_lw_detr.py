"""LW-DETR and RF-DETR equal those of transformers: two levels, padding, other sizes, training."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from groupdetr.checkpoints.checkpoint import Checkpoint
from groupdetr.checkpoints.layout import Layout
from groupdetr.detectors.lw_detr import LWDETR
from groupdetr.detectors.rf_detr import RFDETR
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.structures.images import Images
from groupdetr.structures.targets import Target
from groupdetr.weights.huggingface_lw_detr import HUGGING_FACE_LW_DETR
from groupdetr.weights.huggingface_rf_detr import HUGGING_FACE_RF_DETR
from tests.weights.windowed_vit import CLASSES, GROUPS, QUERIES, lw_detr, rf_detr, save_folder

TOLERANCE = 1e-4
COMMON: dict[str, Any] = {
    "num_classes": CLASSES,
    "num_groups": GROUPS,
    "num_queries": QUERIES,
    "channels": 32,
    "num_heads": 2,
    "cross_attention_heads": 4,
    "num_points": 2,
    "decoder_layers": 2,
    "dim_feedforward": 16,
    "vit_width": 24,
    "vit_depth": 3,
}
LW_DETR = LWDETR(
    **COMMON,
    projector_levels=("P3", "P5"),
    vit_heads=4,
    global_blocks=(1,),
    map_blocks=(1, 2),
)
# transformers counts maps from 1 and blocks without windows from 0, and calls both "out_indices".
RF_DETR = RFDETR(**COMMON, vit_heads=6, global_blocks=(1, 2), map_blocks=(0, 1), position_grid=4)
TARGETS = [
    Target(torch.tensor([1, 3]), torch.tensor([[0.3, 0.4, 0.2, 0.3], [0.6, 0.5, 0.4, 0.5]])),
    Target(torch.tensor([2]), torch.tensor([[0.8, 0.2, 0.1, 0.12]])),
]
PUBLISHED_TERMS = {"iou_aware_bce": "loss_ce", "l1": "loss_bbox", "giou": "loss_giou"}
WEIGHTS = {"iou_aware_bce": 1.0, "l1": 5.0, "giou": 2.0}


def with_weights(
    recipe: LWDETR, theirs: nn.Module, layout: Layout, folder: Path
) -> DetectionTransformer:
    """Return our detector with the weights that transformers writes."""
    # Ours selects tokens at the border of the image and in the padding, if they are among the best,
    # as the published code does. transformers never selects them. Here they are never the best.
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "enc_output" in name and name.endswith("bias"):
                parameter.zero_()
    ours = recipe.build()
    written = load_file(save_folder(theirs, folder) / "model.safetensors")
    state = layout.convert(Checkpoint(written, {}, "transformers")).state
    shapes = {name: value.shape for name, value in ours.state_dict().items()}
    state = {name: value.view(shapes[name]) for name, value in state.items()}
    missing, unexpected = ours.load_state_dict(state, strict=False)
    assert not unexpected
    assert not set(missing) & {name for name, _ in ours.named_parameters()}
    return ours


def noise(*sizes: tuple[int, int]) -> Images:
    generator = torch.Generator().manual_seed(1)
    return Images.from_list([torch.randn(3, *size, generator=generator) for size in sizes])


def losses_of_transformers(theirs: nn.Module, images: Images) -> dict[str, Tensor]:
    labels = [{"class_labels": target.labels, "boxes": target.boxes} for target in TARGETS]
    mask = (~images.padding).long()
    return theirs(images.pixels, pixel_mask=mask, labels=labels).loss_dict


def assert_same_training(ours: DetectionTransformer, theirs: nn.Module, images: Images) -> None:
    """The losses of all stages and the gradients of the first convolution agree."""
    for model in (ours, theirs):
        model.train()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
    expected = losses_of_transformers(theirs, images)
    losses = ours.recipe.criterion()(ours(images, TARGETS), TARGETS)
    assert len(losses) == 3 * (ours.recipe.decoder_layers + 1)
    weighted: list[Tensor] = []
    for name, loss in losses.items():
        stage, term = name.split("/")
        suffix = {"proposals": "_enc", "layer0": "_0", "layer1": ""}[stage]
        theirs_weighted = WEIGHTS[term] * expected[PUBLISHED_TERMS[term] + suffix]
        assert loss.item() == pytest.approx(theirs_weighted.item(), rel=TOLERANCE), name
        weighted.append(theirs_weighted)

    torch.stack(weighted).sum().backward()
    torch.stack([*losses.values()]).sum().backward()
    for our_name, their_name in (
        ("backbone.network.embed.patch_conv.weight", "projection.weight"),
        ("queries.learned_offset", "reference_point_embed.weight"),
        ("decoder.layers.0.norm1.weight", "decoder.layers.0.self_attn_layer_norm.weight"),
    ):
        (their_gradient,) = (
            p.grad for name, p in theirs.named_parameters() if name.endswith(their_name)
        )
        our_gradient = ours.get_parameter(our_name).grad
        assert their_gradient is not None
        assert our_gradient is not None
        difference = (our_gradient.flatten() - their_gradient.flatten()).norm()
        assert difference <= TOLERANCE * their_gradient.norm(), our_name


def test_lw_detr_with_two_levels_and_padding_is_trained_alike(tmp_path: Path) -> None:
    """One image is padded on the right, the other at the bottom."""
    theirs = lw_detr()
    ours = with_weights(LW_DETR, theirs, HUGGING_FACE_LW_DETR, tmp_path)
    assert_same_training(ours, theirs, noise((192, 128), (128, 192)))


def test_rf_detr_is_trained_alike_at_another_size(tmp_path: Path) -> None:
    """Positions are interpolated from 4 x 4 to 6 x 6 patches."""
    theirs = rf_detr()
    ours = with_weights(RF_DETR, theirs, HUGGING_FACE_RF_DETR, tmp_path)
    assert_same_training(ours, theirs, noise((96, 96), (96, 96)))


def test_predictions_in_a_padded_batch_equal_those_of_transformers(tmp_path: Path) -> None:
    theirs = lw_detr()
    ours = with_weights(LW_DETR, theirs, HUGGING_FACE_LW_DETR, tmp_path).eval()
    images = noise((192, 128), (128, 192))
    with torch.no_grad():
        expected = theirs(images.pixels, pixel_mask=(~images.padding).long())
        final = ours(images).final
    difference = partial(torch.testing.assert_close, rtol=0, atol=TOLERANCE)
    difference(final.logits, expected.logits)
    difference(final.boxes, expected.pred_boxes)
