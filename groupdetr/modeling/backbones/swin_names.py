"""Tensor names of the authors' Swin Transformer, in pretrained files and in DINO's checkpoints.

The authors merge patches at the end of a stage, and timm at the start of the next one. Both order
the four merged patches in the same way.
"""

from __future__ import annotations

from groupdetr.checkpoints.layout import Names, with_prefixes

OFFICIAL_SWIN_NAMES: Names = {
    # These follow from the sizes of windows and images.
    "layers.*.relative_position_index": (),
    "layers.*.attn_mask": (),
    "patch_embed.*": "patch_embed.*",
    "layers.#.blocks.#.*": "layers.#.blocks.#.*",
    "layers.0.downsample.*": "layers.1.downsample.*",
    "layers.1.downsample.*": "layers.2.downsample.*",
    "layers.2.downsample.*": "layers.3.downsample.*",
}

# The backbone's 355 tensors in a checkpoint of DINO with Swin-L. Both sides count the norms of
# stages 1 to 3 from 1.
DINO_SWIN: Names = with_prefixes(
    {**OFFICIAL_SWIN_NAMES, "norm#.*": "norms.#.*"}, "backbone.0.", "backbone.network."
)
