"""Metadata of a network that computes something else than ours, which no tensor shows."""

from __future__ import annotations

from typing import Any

import pytest

from groupdetr.checkpoints.checkpoint import Checkpoint
from groupdetr.checkpoints.layout import Layout
from groupdetr.errors import WeightsError
from groupdetr.weights.conversion import file_options
from groupdetr.weights.huggingface_conditional_detr import HUGGING_FACE
from groupdetr.weights.huggingface_dab_detr import HUGGING_FACE_DAB
from groupdetr.weights.huggingface_lw_detr import HUGGING_FACE_LW_DETR
from groupdetr.weights.huggingface_rf_detr import HUGGING_FACE_RF_DETR, HUGGING_FACE_RF_DETR_SEG
from groupdetr.weights.official_deformable import OFFICIAL_DINO
from groupdetr.weights.official_lw_detr import OFFICIAL_LW_DETR
from groupdetr.weights.roboflow_rf_detr import ROBOFLOW_RF_DETR

HEADS = {"encoder_attention_heads": 4, "decoder_attention_heads": 8}


@pytest.mark.parametrize(
    ("layout", "metadata", "name"),
    [
        (HUGGING_FACE, {"activation_function": "gelu"}, "activation_function"),
        (HUGGING_FACE, HEADS, "decoder_attention_heads"),
        (HUGGING_FACE_DAB, {"activation_function": "relu"}, "activation_function"),
        (HUGGING_FACE_DAB, HEADS, "decoder_attention_heads"),
        (HUGGING_FACE_DAB, {"sine_position_embedding_scale": 1.0}, "sine_position_embedding_scale"),
        (HUGGING_FACE_LW_DETR, {"activation_function": "relu"}, "activation_function"),
        (HUGGING_FACE_LW_DETR, {"batch_norm_eps": 0.1}, "batch_norm_eps"),
        (HUGGING_FACE_LW_DETR, {"backbone_config": {"hidden_act": "relu"}}, "hidden_act"),
        (HUGGING_FACE_RF_DETR, {"decoder_activation_function": "gelu"}, "decoder_activation"),
        (HUGGING_FACE_RF_DETR, {"backbone_config": {"apply_layernorm": False}}, "apply_layernorm"),
        (
            HUGGING_FACE_RF_DETR_SEG,
            {"segmentation_head_activation_function": "relu"},
            "segmentation_head_activation_function",
        ),
        (OFFICIAL_DINO, {"transformer_activation": "gelu"}, "transformer_activation"),
        (OFFICIAL_DINO, {"decoder_module_seq": ["ca", "sa", "ffn"]}, "decoder_module_seq"),
        (OFFICIAL_LW_DETR, {"bbox_reparam": False}, "bbox_reparam"),
        (ROBOFLOW_RF_DETR, {"model_config": {"bbox_reparam": False}}, "bbox_reparam"),
    ],
)
def test_a_network_that_computes_something_else_is_refused(
    layout: Layout, metadata: dict[str, Any], name: str
) -> None:
    with pytest.raises(WeightsError, match=f"{name}.* is .* and groupdetr supports only"):
        file_options(layout, Checkpoint({}, metadata, "here"))
