"""The authors' checkpoints of DAB-Deformable-DETR and DINO (github.com/IDEA-Research)."""

from __future__ import annotations

from typing import Any

from groupdetr.checkpoints.layout import Facts, Layout, Names
from groupdetr.checkpoints.reading import Checkpoint
from groupdetr.modeling.backbones.swin_names import DETECTOR
from groupdetr.weights.conditional_detr import categories
from groupdetr.weights.dab_detr import temperature

ATTENTION: Names = {
    "sampling_offsets.*": "offsets.*",
    "attention_weights.*": "weights.*",
    "value_proj.*": "value.*",
    "output_proj.*": "output.*",
}
LAYERS = range(12)  # more than any of theirs has

SHARED: Names = {
    "*.num_batches_tracked": (),
    "backbone.0.body.*": "backbone.network.*",
    **DETECTOR,
    "input_proj.#.*": "encoder.project.levels.#.*",
    "transformer.level_embed": "encoder.level",
    **{
        f"transformer.encoder.layers.#.self_attn.{theirs}": f"encoder.layers.#.attention.{ours}"
        for theirs, ours in ATTENTION.items()
    },
    "transformer.encoder.layers.#.linear1.*": "encoder.layers.#.feed_forward.expand.*",
    "transformer.encoder.layers.#.linear2.*": "encoder.layers.#.feed_forward.contract.*",
    "transformer.encoder.layers.#.norm#.*": "encoder.layers.#.norm#.*",
    "transformer.decoder.layers.#.self_attn.in_proj_*": (
        "decoder.layers.#.self_attention.query.*",
        "decoder.layers.#.self_attention.key.*",
        "decoder.layers.#.self_attention.value.*",
    ),
    "transformer.decoder.layers.#.self_attn.out_proj.*": "decoder.layers.#.self_attention.output.*",
    **{
        f"transformer.decoder.layers.#.cross_attn.{theirs}": f"decoder.layers.#.cross_attention.{ours}"
        for theirs, ours in ATTENTION.items()
    },
    "transformer.decoder.layers.#.linear1.*": "decoder.layers.#.feed_forward.expand.*",
    "transformer.decoder.layers.#.linear2.*": "decoder.layers.#.feed_forward.contract.*",
    # theirs are numbered by declaration and not by turn: cross-attention comes first there
    "transformer.decoder.layers.#.norm1.*": "decoder.layers.#.norm2.*",
    "transformer.decoder.layers.#.norm2.*": "decoder.layers.#.norm1.*",
    "transformer.decoder.layers.#.norm3.*": "decoder.layers.#.norm3.*",
    "transformer.decoder.ref_point_head.*": "decoder.places.0.mlp.*",
}

DAB_NAMES: Names = {
    **SHARED,
    "transformer.decoder.query_scale.*": "decoder.places.1.scale.*",  # shared from layer 1 on
    "class_embed.#.*": "decoder.heads.#.classify.*",
    "bbox_embed.#.*": "decoder.heads.#.regress.*",
    "transformer.decoder.bbox_embed.#.*": "decoder.heads.#.regress.*",  # the same under a second name
    "tgt_embed.weight": "queries.embedding",
    "refpoint_embed.weight": "queries.anchors",
}

DINO_NAMES: Names = {
    **SHARED,
    "transformer.decoder.norm.*": "decoder.norm.*",
    # the heads that all layers share, under a name for each layer, twice
    **{
        f"{place}class_embed.{i}.*": "decoder.heads.0.classify.*"
        for place in ("", "transformer.decoder.")
        for i in LAYERS
    },
    **{
        f"{place}bbox_embed.{i}.*": "decoder.heads.0.regress.*"
        for place in ("", "transformer.decoder.")
        for i in LAYERS
    },
    "transformer.tgt_embed.weight": "queries.matching.embedding",
    "transformer.enc_output.*": "queries.matching.heads.project.*",
    "transformer.enc_output_norm.weight": "queries.matching.heads.norm_weight",
    "transformer.enc_output_norm.bias": "queries.matching.heads.norm_bias",
    "transformer.enc_out_class_embed.*": "queries.matching.heads.classify.*",
    "transformer.enc_out_bbox_embed.layers.#.*": "queries.matching.heads.regress.#.*",
    "label_enc.weight": "queries.labels.weight",
}


def options(args: Facts) -> dict[str, Any]:
    """From the training script's arguments."""
    names = {"nheads": "num_heads", "dropout": "dropout"}
    return {ours: args[theirs] for theirs, ours in names.items() if theirs in args}


def dino_options(args: Facts) -> dict[str, Any]:
    names = {"dn_number": "num_denoising", "dn_label_noise_ratio": "label_noise_ratio"}
    told = {
        ours: args[theirs]
        for theirs, ours in {**names, "dn_box_noise_scale": "box_noise_scale"}.items()
        if theirs in args
    }
    return {**options(args), **temperature(args, "pe_temperatureH", "pe_temperatureW"), **told}


def dino_preset(file: Checkpoint) -> str:
    """By the backbone's tensors."""
    return f"dino-4scale-{'swin-l' if 'backbone.network.patch_embed.proj.weight' in file.state else 'r50'}"


OFFICIAL_DAB_DEFORMABLE = Layout(
    "the authors' DAB-Deformable-DETR",
    lambda _: "dab-deformable-detr-r50",
    ("transformer.level_embed", "tgt_embed.weight", "refpoint_embed.weight"),
    DAB_NAMES,
    options,
    categories,
)
OFFICIAL_DINO = Layout(
    "the authors' DINO",
    dino_preset,
    ("transformer.level_embed", "transformer.enc_out_class_embed.weight", "label_enc.weight"),
    DINO_NAMES,
    dino_options,
    categories,
)
