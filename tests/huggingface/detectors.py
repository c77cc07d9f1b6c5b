"""Tiny detectors of transformers, built from configurations: nothing is downloaded."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

NUM_QUERIES = 5
NUM_CLASSES = 3
CHANNELS = 16


def backbone() -> Any:
    """A ResNet of a few channels."""
    from transformers import ResNetConfig

    return ResNetConfig(
        embeddings_size=8,
        hidden_sizes=[8, 8, 8, 8],
        depths=[1, 1, 1, 1],
        out_features=["stage2", "stage3", "stage4"],
    )


def transformer(**changes: Any) -> dict[str, Any]:
    """What the configurations of DETR and its close relatives have in common."""
    return {
        "backbone_config": backbone(),
        "num_labels": NUM_CLASSES,
        "num_queries": NUM_QUERIES,
        "d_model": CHANNELS,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "auxiliary_loss": True,
        **changes,
    }


def detr() -> Any:
    from transformers import DetrConfig, DetrForObjectDetection

    return DetrForObjectDetection(DetrConfig(**transformer()))


def conditional_detr() -> Any:
    from transformers import ConditionalDetrConfig, ConditionalDetrForObjectDetection

    return ConditionalDetrForObjectDetection(ConditionalDetrConfig(**transformer()))


def table_transformer() -> Any:
    from transformers import TableTransformerConfig, TableTransformerForObjectDetection

    return TableTransformerForObjectDetection(TableTransformerConfig(**transformer()))


def dab_detr() -> Any:
    from transformers import DabDetrConfig, DabDetrForObjectDetection

    changes = transformer()
    changes["hidden_size"] = changes.pop("d_model")
    return DabDetrForObjectDetection(DabDetrConfig(**changes))


def deformable_detr(**changes: Any) -> Any:
    from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection

    config = DeformableDetrConfig(
        # Its group norms need 32 channels.
        **transformer(d_model=32, num_feature_levels=4, two_stage_num_proposals=NUM_QUERIES),
        **changes,
    )
    return DeformableDetrForObjectDetection(config)


def refined_deformable_detr() -> Any:
    return deformable_detr(with_box_refine=True)


def two_stage_deformable_detr() -> Any:
    return deformable_detr(with_box_refine=True, two_stage=True)


def proposals(**changes: Any) -> dict[str, Any]:
    """What the configurations of RT-DETR and the families that follow it have in common."""
    return {
        "num_labels": NUM_CLASSES,
        "num_queries": NUM_QUERIES,
        "d_model": CHANNELS,
        "encoder_hidden_dim": CHANNELS,
        "encoder_ffn_dim": 16,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "decoder_ffn_dim": 16,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "encoder_in_channels": [8, 8, 8],
        "decoder_in_channels": [CHANNELS] * 3,
        "feat_strides": [8, 16, 32],
        "decoder_n_points": 2,
        "num_denoising": 4,
        "anchor_image_size": None,
        "auxiliary_loss": True,
        **changes,
    }


def rt_detr_backbone() -> Any:
    from transformers import RTDetrResNetConfig

    return RTDetrResNetConfig(
        embeddings_size=8,
        hidden_sizes=[8, 8, 8, 8],
        depths=[1, 1, 1, 1],
        out_features=["stage2", "stage3", "stage4"],
    )


def rt_detr() -> Any:
    from transformers import RTDetrConfig, RTDetrForObjectDetection

    return RTDetrForObjectDetection(RTDetrConfig(backbone_config=rt_detr_backbone(), **proposals()))


def rt_detr_v2() -> Any:
    from transformers import RTDetrV2Config, RTDetrV2ForObjectDetection

    config = RTDetrV2Config(backbone_config=rt_detr_backbone(), **proposals())
    return RTDetrV2ForObjectDetection(config)


def hgnet() -> Any:
    from transformers import HGNetV2Config

    return HGNetV2Config(
        stem_channels=[3, 8, 8],
        stage_in_channels=[8, 8, 8, 8],
        stage_mid_channels=[8, 8, 8, 8],
        stage_out_channels=[8, 8, 8, 8],
        stage_num_blocks=[1, 1, 1, 1],
        stage_downsample=[False, True, True, True],
        stage_light_block=[False, False, True, True],
        stage_kernel_size=[3, 3, 5, 5],
        stage_numb_of_layers=[1, 1, 1, 1],
        embeddings_size=8,
        hidden_sizes=[8, 8, 8, 8],
        depths=[1, 1, 1, 1],
        out_features=["stage2", "stage3", "stage4"],
    )


def d_fine() -> Any:
    from transformers import DFineConfig, DFineForObjectDetection

    config = DFineConfig(
        backbone_config=hgnet(),
        **proposals(hidden_size=CHANNELS, decoder_n_points=[2, 2, 2], num_feature_levels=3),
    )
    return DFineForObjectDetection(config)


def deim_v2() -> Any:
    from transformers import Deimv2Config, Deimv2ForObjectDetection

    config = Deimv2Config(
        backbone_config=hgnet(),
        **proposals(hidden_size=CHANNELS, decoder_n_points=[2, 2, 2], num_feature_levels=3),
    )
    return Deimv2ForObjectDetection(config)


def lw_detr() -> Any:
    from transformers import LwDetrConfig, LwDetrForObjectDetection
    from transformers.models.lw_detr.configuration_lw_detr import LwDetrViTConfig

    vit = LwDetrViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        window_block_indices=[0],
        out_indices=[1, 2],
        image_size=64,
        pretrain_image_size=64,
        patch_size=16,
        num_windows=4,
        dropout_prob=0.0,
    )
    config = LwDetrConfig(
        backbone_config=vit,
        projector_scale_factors=[1.0],
        num_labels=NUM_CLASSES,
        num_queries=NUM_QUERIES,
        d_model=CHANNELS,
        decoder_layers=2,
        decoder_ffn_dim=16,
        decoder_self_attention_heads=2,
        decoder_cross_attention_heads=2,
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        group_detr=1,
        auxiliary_loss=True,
    )
    return LwDetrForObjectDetection(config)


def rf_detr_config() -> Any:
    from transformers import RfDetrConfig, RfDetrDinov2Config

    vit = RfDetrDinov2Config(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=64,
        patch_size=16,
        num_windows=2,
        out_features=["stage1", "stage2"],
    )
    return RfDetrConfig(
        backbone_config=vit,
        num_labels=NUM_CLASSES,
        num_queries=NUM_QUERIES,
        d_model=CHANNELS,
        decoder_layers=2,
        decoder_ffn_dim=16,
        decoder_self_attention_heads=2,
        decoder_cross_attention_heads=2,
        dropout=0.0,
        group_detr=1,
        intermediate_size=16,
        mask_point_sample_ratio=4,
    )


def rf_detr() -> Any:
    from transformers import RfDetrForObjectDetection

    return RfDetrForObjectDetection(rf_detr_config())


def rf_detr_masks() -> Any:
    from transformers import RfDetrForInstanceSegmentation

    return RfDetrForInstanceSegmentation(rf_detr_config())


def transformer_with_masks() -> dict[str, Any]:
    """The mask head needs channels and heads whose sum is a multiple of eight."""
    heads = {"encoder_attention_heads": 8, "decoder_attention_heads": 8}
    return transformer(d_model=32, **heads)


def detr_masks() -> Any:
    from transformers import DetrConfig, DetrForSegmentation

    return DetrForSegmentation(DetrConfig(**transformer_with_masks()))


def conditional_detr_masks() -> Any:
    from transformers import ConditionalDetrConfig, ConditionalDetrForSegmentation

    return ConditionalDetrForSegmentation(ConditionalDetrConfig(**transformer_with_masks()))


def mask2former() -> Any:
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

    config = Mask2FormerConfig(
        backbone_config=backbone_of_masks(),
        num_labels=NUM_CLASSES,
        num_queries=NUM_QUERIES,
        feature_size=32,  # of its group norms
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        encoder_layers=1,
        decoder_layers=3,
        num_attention_heads=2,
        dropout=0.0,
        train_num_points=32,
    )
    return Mask2FormerForUniversalSegmentation(config)


def backbone_of_masks() -> Any:
    """A backbone that has the finest feature map, too."""
    config = backbone()
    config.out_features = ["stage1", "stage2", "stage3", "stage4"]
    return config


def maskformer() -> Any:
    from transformers import DetrConfig, MaskFormerConfig, MaskFormerForInstanceSegmentation

    decoder = transformer()
    config = MaskFormerConfig(
        backbone_config=backbone_of_masks(),
        decoder_config=DetrConfig(**decoder),
        fpn_feature_size=32,  # of its group norms
        mask_feature_size=16,
        num_labels=NUM_CLASSES,
    )
    return MaskFormerForInstanceSegmentation(config)


DETECTORS: dict[str, Callable[[], Any]] = {
    "DETR": detr,
    "Conditional DETR": conditional_detr,
    "Table Transformer": table_transformer,
    "DAB-DETR": dab_detr,
    "Deformable DETR": deformable_detr,
    "Deformable DETR, box refinement": refined_deformable_detr,
    "Deformable DETR, two stages": two_stage_deformable_detr,
    "RT-DETR": rt_detr,
    "RT-DETRv2": rt_detr_v2,
    "D-FINE": d_fine,
    "DEIMv2": deim_v2,
    "LW-DETR": lw_detr,
    "RF-DETR": rf_detr,
    "RF-DETR, instance segmentation": rf_detr_masks,
    "DETR, segmentation": detr_masks,
    "Conditional DETR, segmentation": conditional_detr_masks,
    "Mask2Former": mask2former,
    "MaskFormer": maskformer,
}


def aligned(model: Any) -> Any:
    """Return a copy of a loaded model whose weights are at addresses that torch chooses.

    Those of a file lie wherever they are in the file, and at some addresses the libraries of linear
    algebra round differently.
    """
    return copy.deepcopy(model)


def batch(model: Any, num_objects: tuple[int, ...] = (2, 1)) -> dict[str, Any]:
    """Images of 64 pixels with so many objects, as the model takes them."""
    labels = [label(count) for count in num_objects]
    pixels = torch.randn(len(labels), 3, 64, 64)
    if "Segmentation" in type(model).__name__:
        for target in labels:
            target["masks"] = masks(target["boxes"])
    if not hasattr(model, "criterion"):
        return {"pixel_values": pixels, "labels": labels}
    return {
        "pixel_values": pixels,
        "mask_labels": [masks(target["boxes"]) for target in labels],
        "class_labels": [target["class_labels"] for target in labels],
    }


def label(num_objects: int) -> dict[str, Tensor]:
    """Random objects in the format of transformers."""
    return {
        "class_labels": torch.randint(NUM_CLASSES, (num_objects,)),
        "boxes": torch.rand(num_objects, 4) * 0.4 + 0.2,
    }


def masks(boxes: Tensor) -> Tensor:
    """The masks [T,64,64] of rectangles."""
    rows = (torch.arange(64) + 0.5) / 64
    inside_x = (rows - boxes[:, :1]).abs() < boxes[:, 2:3] / 2
    inside_y = (rows - boxes[:, 1:2]).abs() < boxes[:, 3:] / 2
    return (inside_y[:, :, None] & inside_x[:, None, :]).float()
