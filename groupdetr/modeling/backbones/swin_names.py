"""What the authors' Swin Transformer calls its tensors: in DINO's checkpoints, and in the files that start them.

They merge patches at the end of a stage, and timm at the start of the next; both order the four patches alike.
"""

from __future__ import annotations

from groupdetr.checkpoints.layout import Names

MERGING: Names = {
    f"layers.{stage}.downsample.*": f"layers.{stage + 1}.downsample.*" for stage in range(3)
}

SWIN: Names = {
    "*.relative_position_index": (),  # follow from the size of window and image
    "*.attn_mask": (),
    "patch_embed.*": "patch_embed.*",
    "layers.#.blocks.#.*": "layers.#.blocks.#.*",
    **MERGING,
}

DETECTOR: Names = {
    f"backbone.0.{theirs}" if theirs[0] != "*" else f"backbone.0.layers.{theirs}": (
        f"backbone.network.{ours}" if isinstance(ours, str) else ours
    )
    for theirs, ours in {**SWIN, "norm#.*": "norms.#.*"}.items()
}  # 355 entries of a checkpoint of DINO with Swin-L; ours count the norms of stages 1 to 3 from 1, too
