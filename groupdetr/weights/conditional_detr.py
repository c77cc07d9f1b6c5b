"""The authors' Conditional DETR checkpoints (github.com/Atten4Vis/ConditionalDETR), R50 and R50-DC5, 564 tensors each.

Branch GroupDETR differs in one tensor: ``query_embed.weight`` has K*N rows, group after group.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from groupdetr.checkpoints.layout import Category, Facts, Layout, Names
from groupdetr.checkpoints.reading import Checkpoint
from groupdetr.errors import WeightsError
from groupdetr.weights.coco_names import COCO_91

DECODER: Names = {
    "sa_qcontent_proj.*": "self_attention.query_content.*",
    "sa_qpos_proj.*": "self_attention.query_position.*",
    "sa_kcontent_proj.*": "self_attention.key_content.*",
    "sa_kpos_proj.*": "self_attention.key_position.*",
    "sa_v_proj.*": "self_attention.value.*",
    "self_attn.out_proj.*": "self_attention.output.*",
    "ca_qcontent_proj.*": "cross_attention.query_content.*",
    "ca_qpos_proj.*": "cross_attention.query_position.*",  # of layer 0 alone
    "ca_kcontent_proj.*": "cross_attention.key_content.*",
    "ca_kpos_proj.*": "cross_attention.key_place.*",
    "ca_qpos_sine_proj.*": "cross_attention.query_place.*",
    "ca_v_proj.*": "cross_attention.value.*",
}  # of one decoder layer, as Hugging Face stores them too

SHARED: Names = {
    "*.num_batches_tracked": (),  # frozen batch norms count nothing
    "backbone.0.body.*": "backbone.network.*",
    "input_proj.*": "encoder.projection.*",
    "transformer.encoder.layers.#.self_attn.in_proj_*": (
        "encoder.layers.#.attention.query.*",
        "encoder.layers.#.attention.key.*",
        "encoder.layers.#.attention.value.*",
    ),
    "transformer.encoder.layers.#.self_attn.out_proj.*": "encoder.layers.#.attention.output.*",
    "transformer.encoder.layers.#.linear1.*": "encoder.layers.#.feed_forward.expand.*",
    "transformer.encoder.layers.#.linear2.*": "encoder.layers.#.feed_forward.contract.*",
    "transformer.encoder.layers.#.norm#.*": "encoder.layers.#.norm#.*",
    **{
        f"transformer.decoder.layers.#.{theirs}": f"decoder.layers.#.{ours}"
        for theirs, ours in DECODER.items()
    },
    "transformer.decoder.layers.#.cross_attn.out_proj.*": "decoder.layers.#.cross_attention.output.*",
    "transformer.decoder.layers.#.linear1.*": "decoder.layers.#.feed_forward.expand.*",
    "transformer.decoder.layers.#.linear2.*": "decoder.layers.#.feed_forward.contract.*",
    "transformer.decoder.layers.#.norm#.*": "decoder.layers.#.norm#.*",
    "transformer.decoder.norm.*": "decoder.norm.*",
    "class_embed.*": "decoder.heads.0.classify.*",
    "bbox_embed.*": "decoder.heads.0.regress.*",
}  # with those of its descendants, DAB-DETR and DN-DETR

NAMES: Names = {
    **SHARED,
    "query_embed.weight": "queries.embedding",
    "transformer.decoder.ref_point_head.*": "queries.point.*",
    "transformer.decoder.query_scale.*": "decoder.layers.1.cross_attention.aim.scale.*",  # shared from layer 1 on
}


def options(args: Facts) -> dict[str, Any]:
    """From the training script's arguments."""
    names = {"nheads": "num_heads", "dropout": "dropout", "dilation": "dilated"}
    return {ours: args[theirs] for theirs, ours in names.items() if theirs in args}


def categories(args: Facts) -> list[Category]:
    """Rows are COCO's category ids, unless the script was given another data set."""
    return [*enumerate(COCO_91)] if args.get("dataset_file") == "coco" else []


def r50_or_dc5(family: str, dilation: str, file: Checkpoint) -> str:
    """R50 and R50-DC5 have the same tensors: only the fact ``dilation`` beside them tells one from the other."""
    r50, dc5 = f"{family}-r50", f"{family}-r50-dc5"
    if dilation not in file.facts:
        remedy = f"name it: --model {r50} (preset={r50!r})"
        raise WeightsError(f"the file does not say if it is {r50} or {dc5}", file.where, remedy)
    return dc5 if file.facts[dilation] else r50


OFFICIAL = Layout(
    "the authors' Conditional DETR",
    partial(r50_or_dc5, "conditional-detr", "dilation"),
    ("class_embed.weight", "query_embed.weight", "transformer.decoder.ref_point_head.*"),
    NAMES,
    options,
    categories,
)
