"""groupdetr import: published weights to a file of this library."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Options:
    """Convert published weights (official .pth or .pkl, the authors' GroupDETR branch, Hugging Face, detrex) to ours.

    Conditional DETR, DAB-DETR, DN-DETR, DAB-Deformable-DETR, DINO, Mask2Former, PETR and PETRv2; nothing in the file is
    executed."""

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """The checkpoint: a file, or a Hugging Face folder."""
    out: Path | None = None
    """The file to write. None: SOURCE with the ending .groupdetr.safetensors."""
    model: str | None = None
    """The preset it belongs to. None: as the checkpoint says."""
    groups: int | None = None
    """K of the new file; None: the checkpoint's."""
    queries: int | None = None
    """N of the new file; None: the checkpoint's."""
    file_groups: int | None = None
    """How many groups the checkpoint's query rows are, if it does not say."""
    layout: str | None = None
    """Who wrote the checkpoint, if it may be of several and does not say."""

    def run(self) -> int:
        from groupdetr.tasks.detection2d.prediction import task_of
        from groupdetr.weights.importing import import_weights
        from groupdetr.workflows.task_workflows import verbs_for

        out = self.out or self.source.with_suffix(".groupdetr.safetensors")
        options = {"num_groups": self.groups, "num_queries": self.queries}
        given = {name: value for name, value in options.items() if value is not None}
        report = import_weights(
            self.source, out, self.model, self.file_groups, self.layout, **given
        )
        next_step = f"groupdetr predict {out} {verbs_for(task_of(out)).asks}"
        print("\n".join([*report.lines, f"written to {out}; next: {next_step}"]))
        return 0
