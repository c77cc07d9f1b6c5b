"""The items of `groupdetr paper`: every table and figure of the paper, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from groupdetr.errors import UsageError
from groupdetr.paper import small_scale
from groupdetr.paper.convergence import Convergence, Fig1, Fig5, Table3, Table4
from groupdetr.paper.extensions import Table5, Table6
from groupdetr.paper.fig3 import Fig3
from groupdetr.paper.fig4 import Fig4
from groupdetr.paper.fig7 import Fig7
from groupdetr.paper.fig8 import Fig8
from groupdetr.paper.fig9 import Fig9
from groupdetr.paper.item import Choices, Item
from groupdetr.paper.plan import EqualTimeRow, Row, with_parents
from groupdetr.paper.results import markdown
from groupdetr.paper.scale import Scale, family_of
from groupdetr.paper.step_groups import FewerGroups
from groupdetr.paper.table1 import Table1
from groupdetr.paper.table2 import Table2
from groupdetr.paper.table7 import Table7
from groupdetr.paper.trainings import Store, Training
from groupdetr.paper.vit_h import ViTH

ITEMS: dict[str, Item] = {
    item.name: item
    for item in (
        *(Table1(), Table2(), Table3(), Table4(), Table5(), Table6(), Table7()),
        *(Fig1(), Fig3(), Fig4(), Fig5(), Fig7(), Fig8(), Fig9(), Convergence()),
        *(FewerGroups(), ViTH()),
    )
}

# GPU hours of an epoch on COCO without groups and with eleven, on A100. Those of Conditional DETR
# and DAB-DETR are the paper's: 23, 28, 28 and 33 minutes on eight GPUs.
A100_HOURS = {
    "conditional-detr": (23 * 8 / 60, 28 * 8 / 60),
    "dab-detr": (28 * 8 / 60, 33 * 8 / 60),
}
# Other detectors, as a multiple of one of these, by the GPU hours that Deformable DETR's authors
# publish for an epoch: 4.0 of DETR, 14 of its dilated version, 6.5 of Deformable DETR.
DILATED, DEFORMABLE = 14 / 4.0, 6.5 / 4.0
RELATIVE = {
    "conditional-detr-dc5": ("conditional-detr", DILATED),
    "dab-detr-dc5": ("dab-detr", DILATED),
    "dn-detr": ("dab-detr", 1.0),
    "dn-detr-dc5": ("dab-detr", DILATED),
    "dab-deformable-detr": ("dab-detr", DEFORMABLE),
    "dino": ("dab-detr", DEFORMABLE),
}
HOURS_FORMULA = (
    "GPU hours are those of A100 on COCO: epochs times the paper's hours of an epoch for "
    "Conditional DETR and DAB-DETR. Other detectors are estimated from these by the ratio of the "
    "hours that the authors of Deformable DETR publish. Swin-L, masks and scenes have no estimate."
)
MINUTES_FORMULA = (
    "Minutes are those of one seed on two cores: steps times the CPU time of a step that was "
    "measured on a busy machine, a tenth for evaluations, divided by two. What another item has "
    "trained is not trained again."
)
EVALUATIONS = 1.1  # time of a training with its evaluations, over that without
CORES = 2


@dataclass(frozen=True)
class Cost:
    """What the trainings of an item take."""

    trainings: int  # of one seed; those whose length depends on measured times included
    minutes: float | None  # on two cores at small scale, of one seed; None: no estimate
    gpu_hours: float | None  # on COCO, of one seed; None: no estimate, or no such item


def item(name: str) -> Item:
    """Return an item of the paper. `UsageError` if there is none with this name."""
    if name not in ITEMS:
        raise UsageError(f"there is no item {name!r}", remedy=f"choose from: {', '.join(ITEMS)}")
    return ITEMS[name]


def cost(chosen: Item, small: Scale, coco: Scale) -> Cost:
    """Return what the trainings of one seed take, at small scale and on COCO.

    It does not matter which of them are done already.
    """
    choices = Choices(range(1))
    plan = chosen.plan(small, choices)
    rows = [row for row in plan.rows if isinstance(row, Row)]
    needed = with_parents(dict.fromkeys(row.trainings[0] for row in rows))
    seconds = [cpu_seconds(training) for training in needed]
    for row in plan.rows:
        if isinstance(row, EqualTimeRow):
            # It takes as long as the training with groups.
            seconds.append(cpu_seconds(row.grouped.trainings[0]))
    if chosen.own_seconds:
        seconds.append(chosen.own_seconds)
    known = [value for value in seconds if value is not None]
    minutes = None
    if len(known) == len(seconds):
        minutes = sum(known) * EVALUATIONS / CORES / 60
    num_trainings = len(seconds) - bool(chosen.own_seconds)
    hours = _coco_hours(chosen, coco, choices) if num_trainings else None
    return Cost(num_trainings, minutes, hours)


def cpu_seconds(training: Training) -> float | None:
    """Return the estimated CPU time of a training at small scale."""
    known = [
        detector
        for detector in small_scale.DETECTORS.values()
        if detector.preset == training.model
        and training.fields[: len(detector.fields)] == detector.fields
    ]
    # A training has further fields than its detector.
    detector = max(known, key=lambda detector: len(detector.fields), default=None)
    steps = training.total_steps
    if detector is None or steps is None:
        return None
    one, many = detector.step_seconds
    # The time of a step grows linearly with K.
    per_group = (many - one) / (small_scale.GROUPS - 1)
    return steps * (one + per_group * (training.groups - 1))


def _coco_hours(chosen: Item, coco: Scale, choices: Choices) -> float | None:
    try:
        plan = chosen.plan(coco, choices)
    except UsageError:
        return None
    hours = []
    rows = [row for row in plan.rows if isinstance(row, Row)]
    for training in with_parents(dict.fromkeys(row.trainings[0] for row in rows)):
        value = gpu_hours(training)
        if value is None:
            return None
        hours.append(value)
    return sum(hours)


def gpu_hours(training: Training) -> float | None:
    """Return the estimated A100 hours of a training on COCO; None if there is no estimate."""
    family = family_of(training.model)
    family = family.rpartition("-")[0] if family.endswith("e") else family
    source, factor = RELATIVE.get(family, (family, 1.0))
    if source not in A100_HOURS:
        return None
    one, eleven = A100_HOURS[source]
    per_group = (eleven - one) / 10
    return factor * training.epochs * (one + per_group * (training.groups - 1))


def items_table() -> str:
    """Return the table of all items in Markdown, as docs/reproducing.md has it."""
    store = Store(Path("runs/paper"))
    small, coco = Scale(store), Scale(store, Path("coco"))
    rows = []
    for name, chosen in ITEMS.items():
        took = cost(chosen, small, coco)
        hours = "–" if not took.gpu_hours else f"{took.gpu_hours:,.0f}"
        minutes = "–" if took.minutes is None else f"{took.minutes:,.0f}"
        rows.append([f"`{name}`", chosen.title, str(took.trainings), minutes, hours])
    names = ["item", "in the paper", "trainings", "minutes, small scale", "GPU hours, COCO"]
    return markdown(names, rows)
