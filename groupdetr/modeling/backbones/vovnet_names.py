"""Names of VoVNetV2-99 in PETR's and DD3D's files, which count stages from 2 and blocks from 1."""

from __future__ import annotations

from groupdetr.checkpoints.layout import Names

STAGES, BLOCKS, CONVS = range(2, 6), range(1, 10), range(5)

VOVNET: Names = {
    "*.num_batches_tracked": (),
    **{
        f"stem.stem_{i + 1}/{part}.*": f"stem.{i}.{part}.*"
        for i in range(3)
        for part in ("conv", "norm")
    },
    **{
        f"stage{s}.OSA{s}_{b}.layers.{i}.OSA{s}_{b}_{i}/{part}.*": f"stages.{s - 2}.{b - 1}.convs.{i}.{part}.*"
        for s in STAGES
        for b in BLOCKS
        for i in CONVS
        for part in ("conv", "norm")
    },
    **{
        f"stage{s}.OSA{s}_{b}.concat.OSA{s}_{b}_concat/{part}.*": f"stages.{s - 2}.{b - 1}.join.{part}.*"
        for s in STAGES
        for b in BLOCKS
        for part in ("conv", "norm")
    },
    **{
        f"stage{s}.OSA{s}_{b}.ese.fc.*": f"stages.{s - 2}.{b - 1}.weigh.fc.*"
        for s in STAGES
        for b in BLOCKS
    },
}
