"""The options of `groupdetr paper`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from groupdetr.cli.options.plugin import PluginOptions

ItemName = Literal[
    "table1", "table2", "table3", "table4", "table5", "table6", "table7",
    "fig1", "fig3", "fig4", "fig5", "fig7", "fig8", "fig9", "convergence", "step-groups",
    "vit-h",
]  # fmt: skip


@dataclass(frozen=True)
class PaperOptions(PluginOptions):
    """Reproduce a table or a figure of the paper: train what is missing, and write its page.

    Without --data, small detectors are trained on drawn images, offline and on a CPU. All items
    share their trainings, which are in OUT/trainings: what exists is not trained again, and what
    was interrupted goes on. OUT/ITEM has report.html, results.json and table.md. Without ITEM, the
    items are listed with what they cost.
    """

    item: Annotated[ItemName | None, tyro.conf.Positional, tyro.conf.arg(metavar="ITEM")] = None
    """The table or figure. None: list all of them."""
    data: Path | None = None
    """A dataset, such as COCO; None: drawn images. Without --models, the detectors and settings are
    those of the paper."""
    models: tuple[str, ...] = ()
    """Presets, in place of the item's own detectors. With --data they have their own settings."""
    groups: tuple[int, ...] = ()
    """Numbers of groups K. None: six at small scale, the paper's eleven otherwise."""
    queries: int | None = None
    """N, the queries of a group. None: the usual number."""
    epochs: tuple[float, ...] = ()
    """Passes over the training images. None: the usual number. The item convergence takes
    several."""
    seeds: int = 1
    """Number of seeds. Several show what is chance, and give gains an interval."""
    seed: int = 0
    """The first seed."""
    equal: Literal["epochs", "time"] | None = None
    """What trainings without and with groups have in common. With time, a baseline is also trained
    for as many epochs as take the measured time of the training with groups. None: time in table2,
    epochs in all others."""
    plan: bool = False
    """Print one command for each training that is not done, for a scheduler, and train nothing.
    Drawn images are written, because the commands need them."""
    on: Literal["local", "slurm"] = "local"
    """local: processes on this machine; slurm: jobs, which submitit submits (pip install
    'groupdetr[slurm]'). Run the command again when the jobs are done."""
    slurm: tuple[str, ...] = ()
    """What jobs ask for, as submitit's name=value: --slurm partition=gpu gpus_per_node=8."""
    at_once: int | None = None
    """Trainings that run in parallel. None: two if there are two cores, one on a GPU."""
    redraw: tuple[Path, ...] = ()
    """A results.json: write its page and its table, and train nothing. ITEM may be left out. The
    results of several files, such as those of two machines, are joined."""
    pretrained_backbone: str = "auto"
    """auto: ImageNet weights, which are downloaded for large backbones; none: random weights; or a
    file."""
    out: Path | None = None
    """Folder of all items and trainings. None: runs/paper."""
    json: bool = False
    """Print one JSON object at the end, the content of results.json (docs/json.md). Progress goes
    to stderr."""
