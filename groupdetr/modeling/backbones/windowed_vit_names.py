"""Tensor names of Vision Transformers with windows: those of DINOv2's files, and LW-DETR's.

RF-DETR has the names of Hugging Face's DINOv2. LW-DETR's are those of CAE v2 in its pretrained
files.
"""

from __future__ import annotations

from groupdetr.checkpoints.layout import Names, with_prefixes

# One block in Hugging Face's files
HUGGING_FACE_BLOCK: Names = {
    "norm#.*": "norm#.*",
    "attention.attention.query.*": "attention.query_proj.*",
    "attention.attention.key.*": "attention.key_proj.*",
    "attention.attention.value.*": "attention.value_proj.*",
    "attention.output.dense.*": "attention.output_proj.*",
    "layer_scale#.lambda1": "layer_scale#",
    "mlp.fc1.*": "feed_forward.expand.*",
    "mlp.fc2.*": "feed_forward.contract.*",
}

HUGGING_FACE_DINOV2: Names = {
    "embeddings.cls_token": "embed.class_token",
    "embeddings.mask_token": (),  # No detector uses it.
    "embeddings.position_embeddings": "embed.position",
    "embeddings.patch_embeddings.projection.*": "embed.patch_conv.*",
    **with_prefixes(HUGGING_FACE_BLOCK, "encoder.layer.#.", "blocks.#."),
    "layernorm.*": "norm.*",
}

# One block in Meta's files, and in timm's
META_BLOCK: Names = {
    "norm#.*": "norm#.*",
    "attn.qkv.*": (
        "attention.query_proj.*",
        "attention.key_proj.*",
        "attention.value_proj.*",
    ),
    "attn.proj.*": "attention.output_proj.*",
    "ls#.gamma": "layer_scale#",
    "mlp.fc1.*": "feed_forward.expand.*",
    "mlp.fc2.*": "feed_forward.contract.*",
}

META_DINOV2: Names = {
    "cls_token": "embed.class_token",
    "mask_token": (),
    "pos_embed": "embed.position",
    "patch_embed.proj.*": "embed.patch_conv.*",
    **with_prefixes(META_BLOCK, "blocks.#.", "blocks.#."),
    "norm.*": "norm.*",
}

# One block of LW-DETR's Vision Transformer. Its keys have no bias.
LW_DETR_BLOCK: Names = {
    "gamma_1": "layer_scale1",
    "gamma_2": "layer_scale2",
    "attn.qkv.weight": (
        "attention.query_proj.weight",
        "attention.key_proj.weight",
        "attention.value_proj.weight",
    ),
    "attn.q_bias": "attention.query_proj.bias",
    "attn.v_bias": "attention.value_proj.bias",
    "attn.proj.*": "attention.output_proj.*",
    "norm#.*": "norm#.*",
    "mlp.fc1.*": "feed_forward.expand.*",
    "mlp.fc2.*": "feed_forward.contract.*",
}

LW_DETR_VIT: Names = {
    "pos_embed": "embed.position",
    "patch_embed.proj.*": "embed.patch_conv.*",
    **with_prefixes(LW_DETR_BLOCK, "blocks.#.", "blocks.#."),
}
