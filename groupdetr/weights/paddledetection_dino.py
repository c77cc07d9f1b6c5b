"""PaddleDetection's checkpoints of Group DINO, with ResNet-50 (718 tensors) and with ViT-Huge.

(github.com/PaddlePaddle/PaddleDetection, configs/group_detr) These are the only published weights
that were trained with the groups of the paper, and the files have all of them. The matrices of
linear layers are [in,out] in PaddlePaddle. Convolutions and tables of embeddings are as in torch.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from groupdetr.checkpoints.checkpoint import Checkpoint
from groupdetr.checkpoints.layout import (
    IdAndName,
    Layout,
    Metadata,
    Names,
    OfGroup,
    OfGroups,
    RecipeFields,
    Transposed,
    with_prefixes,
)
from groupdetr.weights.coco_names import COCO_91

LABEL_ROWS = "queries.labels.weight"  # the label embeddings of denoising queries [K,rows,C]
BLOCKS = {2: 3, 3: 4, 4: 6, 5: 3}  # stage of ResNet-50 in their names -> number of its blocks


def _norm(theirs: str, ours: str) -> Names:
    """Return the names of a batch norm, which counts no batches."""
    return {
        f"{theirs}._mean": f"{ours}.running_mean",
        f"{theirs}._variance": f"{ours}.running_var",
        f"{theirs}.*": f"{ours}.*",
    }


def _resnet() -> Iterator[Names]:
    """Yield their names and torchvision's. Blocks and convolutions have letters from a on."""
    yield {"conv1.conv1.conv.*": "conv1.*", **_norm("conv1.conv1.norm", "bn1")}
    for stage, blocks in BLOCKS.items():
        for block in range(blocks):
            theirs, ours = f"res{stage}.res{stage}{'abcdef'[block]}", f"layer{stage - 1}.{block}"
            for number, letter in enumerate("abc", start=1):
                yield {f"{theirs}.branch2{letter}.conv.*": f"{ours}.conv{number}.*"}
                yield _norm(f"{theirs}.branch2{letter}.norm", f"{ours}.bn{number}")
            yield {f"{theirs}.short.conv.*": f"{ours}.downsample.0.*"}
            yield _norm(f"{theirs}.short.norm", f"{ours}.downsample.1")


RESNET: Names = {theirs: ours for names in _resnet() for theirs, ours in names.items()}

VIT: Names = {
    "patch_embed.*": "patch_embed.*",
    "blocks.#.norm#.*": "blocks.#.norm#.*",
    "blocks.#.attn.rel_pos_*": "blocks.#.attn.rel_pos_*",
    "blocks.#.attn.*": Transposed("blocks.#.attn.*"),
    "blocks.#.mlp.*": Transposed("blocks.#.mlp.*"),
}

# The numbers are the exponents of the strides, 8, 16 and 32. Stride 64 has no parameters.
PYRAMID: Names = {
    "simfp_3.*": "pyramid.fine.*",
    "simfp_4.*": "pyramid.same.*",
    "simfp_5.*": "pyramid.coarse.*",
}

# What layers of the encoder and of the decoder share.
LAYER: Names = {
    "linear1.*": Transposed("feed_forward.expand.*"),
    "linear2.*": Transposed("feed_forward.contract.*"),
}
ENCODER: Names = {
    "self_attn.*": Transposed("attention.*"),
    **LAYER,
    "norm#.*": "norm#.*",
}
DECODER: Names = {
    "self_attn.in_proj_*": Transposed(
        (
            "self_attention.query_proj.*",
            "self_attention.key_proj.*",
            "self_attention.value_proj.*",
        )
    ),
    "self_attn.out_proj.*": Transposed("self_attention.output_proj.*"),
    "cross_attn.*": Transposed("cross_attention.*"),
    **LAYER,
    # Their norms are numbered in the order of declaration, where cross-attention comes first. Ours
    # are numbered in the order of execution.
    "norm1.*": "norm2.*",
    "norm2.*": "norm1.*",
    "norm3.*": "norm3.*",
}

# The queries of every group. `enc_output` is a list of all groups. In the other lists, the first
# tensor is that of group 1, and that of group 0 has a name of its own.
PROJECT, CLASSIFY = "matching.heads.project.*", Transposed("matching.heads.classify.*")
REGRESS = Transposed("matching.heads.regress.#.*")
QUERIES: Names = {
    "tgt_embed.weight": OfGroup(0, "matching.embedding"),
    "tgt_embed_dual.#.weight": OfGroups("matching.embedding", first=1),
    "enc_output.#.0.*": OfGroups(Transposed(PROJECT)),
    "enc_output.#.1.weight": OfGroups("matching.heads.norm_weight"),
    "enc_output.#.1.bias": OfGroups("matching.heads.norm_bias"),
    "enc_score_head.*": OfGroup(0, CLASSIFY),
    "enc_score_head_dq.#.*": OfGroups(CLASSIFY, first=1),
    "enc_bbox_head.layers.#.*": OfGroup(0, REGRESS),
    "enc_bbox_head_dq.#.layers.#.*": OfGroups(REGRESS, first=1),
    "denoising_class_embed.weight": OfGroup(0, "labels.weight"),
    "denoising_class_embed_groups.#.weight": OfGroups("labels.weight", first=1),
}

NAMES: Names = {
    **with_prefixes(RESNET, "backbone.", "backbone.network."),
    **with_prefixes(VIT, "backbone.", "backbone.network.vit."),
    **with_prefixes(PYRAMID, "neck.", "backbone.network."),
    "transformer.input_proj.#.conv.*": "encoder.project.levels.#.0.*",
    "transformer.input_proj.#.norm.*": "encoder.project.levels.#.1.*",
    "transformer.level_embed.weight": "encoder.level_embed",
    **with_prefixes(ENCODER, "transformer.encoder.layers.#.", "encoder.layers.#."),
    **with_prefixes(DECODER, "transformer.decoder.layers.#.", "decoder.layers.#."),
    "transformer.decoder.norm.*": "decoder.norm.*",
    "transformer.query_pos_head.*": Transposed("decoder.position_embeddings.0.mlp.*"),
    "transformer.dec_score_head.#.*": Transposed("decoder.heads.#.classify.*"),
    "transformer.dec_bbox_head.#.*": Transposed("decoder.heads.#.regress.*"),
    **with_prefixes(QUERIES, "transformer.", "queries."),
}


def preset(file: Checkpoint) -> str:
    """Return the preset that has the backbone of the file."""
    is_vit = "backbone.network.vit.patch_embed.proj.weight" in file.state
    return "group-dino-vit-h" if is_vit else "group-dino-r50"


def options(file: Checkpoint) -> RecipeFields:
    """Return the recipe fields of both configurations. The files have no metadata.

    Layer norms and the inverse sigmoid of boxes have PaddleDetection's constants.
    """
    return {
        "shared_heads": False,
        "labels_per_group": True,
        "temperature": 20.0,
        "offset": 0.0,
        "eps": 1e-5,
    }


def categories(metadata: Metadata) -> list[IdAndName]:
    """Return the 80 categories that COCO uses, in the order of their ids."""
    return [(id, name) for id, name in enumerate(COCO_91) if name != "N/A"]


def add_no_object_label(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add a last row to the label embeddings. The authors' table has it, and DINO never uses it."""
    labels = state[LABEL_ROWS]
    return state | {LABEL_ROWS: torch.cat([labels, torch.zeros_like(labels[:, :1])], dim=1)}


def remove_no_object_label(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove the last row of the label embeddings, which PaddleDetection's tables do not have."""
    return state | {LABEL_ROWS: state[LABEL_ROWS][:, :-1]}


PADDLEDETECTION_DINO = Layout(
    title="PaddleDetection's Group DINO",
    preset=preset,
    signature=(
        "transformer.enc_output.#.0.weight",
        "transformer.dec_score_head.#.weight",
        "transformer.denoising_class_embed.weight",
    ),
    names=NAMES,
    options=options,
    categories=categories,
    complete=add_no_object_label,
    undo_complete=remove_no_object_label,
)
