"""Tensor names of VoVNetV2-99 in the files of PETR and DD3D.

These files count stages from 2 and blocks from 1; our names count both from 0.
"""

from __future__ import annotations

from groupdetr.checkpoints.layout import Names

STAGES, BLOCKS, CONVS = range(2, 6), range(1, 10), range(5)


def _vovnet_names() -> dict[str, str | tuple[str, ...]]:
    names: dict[str, str | tuple[str, ...]] = {"*.num_batches_tracked": ()}
    for conv in range(3):
        for part in ("conv", "norm"):
            names[f"stem.stem_{conv + 1}/{part}.*"] = f"stem.{conv}.{part}.*"
    for stage in STAGES:
        for block in BLOCKS:
            block_name = f"OSA{stage}_{block}"
            theirs = f"stage{stage}.{block_name}"
            ours = f"stages.{stage - 2}.{block - 1}"
            for part in ("conv", "norm"):
                for conv in CONVS:
                    conv_name = f"layers.{conv}.{block_name}_{conv}/{part}.*"
                    names[f"{theirs}.{conv_name}"] = f"{ours}.convs.{conv}.{part}.*"
                names[f"{theirs}.concat.{block_name}_concat/{part}.*"] = f"{ours}.concat.{part}.*"
            names[f"{theirs}.ese.fc.*"] = f"{ours}.ese.fc.*"
    return names


VOVNET_NAMES: Names = _vovnet_names()
