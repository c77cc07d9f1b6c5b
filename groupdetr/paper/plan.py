"""The plan of an item: its trainings as rows of a table, and the differences that it is about."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from groupdetr.errors import GroupDETRError
from groupdetr.paper.trainings import Field, Store, StoredTraining, Training
from groupdetr.report.comparison_page import GainRow
from groupdetr.report.run_summary import trained_on_cpu

MIN_DIGITS = 3  # significant digits of the epochs of an equal-time training below one epoch


@dataclass(frozen=True)
class Row:
    """Trainings that differ only in their seed."""

    key: str  # unique in the plan
    label: str  # its name for readers
    trainings: tuple[Training, ...]
    baseline: bool = False
    family: str = ""
    reported: float | None = None  # the paper's figure, in percent


@dataclass(frozen=True)
class EqualTimeRow:
    """A baseline that is trained for the time that a training with groups takes.

    The first seed decides its epochs, so that a further seed does not change them.
    """

    key: str
    label: str
    base: Row
    grouped: Row
    reported: float | None = None

    def resolve(self, store: Store) -> Row | None:
        """Return the row with its trainings; None as long as the times are not known.

        `GroupDETRError` if the times of the two trainings cannot be compared.
        """
        base, grouped = store.run(self.base.trainings[0]), store.run(self.grouped.trainings[0])
        if not (base.done and grouped.done):
            return None
        if trained_on_cpu(base.run) != trained_on_cpu(grouped.run):
            raise GroupDETRError(
                f"{base} and {grouped} have no equal-time comparison, because one was trained on a "
                "CPU and the other on a GPU",
                str(store.trainings),
                "move the folder of one of them away, and train it where the other was trained",
            )
        ratio = max(1.0, grouped.compute_seconds() / base.compute_seconds())
        epochs = rounded_up(base.training.epochs * ratio)
        longer = tuple(training.with_changes(epochs=epochs) for training in self.base.trainings)
        return Row(
            self.key,
            self.label,
            longer,
            baseline=True,
            family=self.base.family,
            reported=self.reported,
        )


def rounded_up(value: float) -> float:
    """Return a number of epochs that is not smaller than ``value``.

    It is a multiple of a tenth, and has three significant digits below one.
    """
    unit = 0.1 if value >= 1 else 10.0 ** (math.floor(math.log10(value)) - MIN_DIGITS + 1)
    if value >= 1:
        return round(math.ceil(value / unit - 1e-6) * unit, 1)
    return float(f"{math.ceil(value / unit - 1e-6) * unit:.{MIN_DIGITS}g}")


@dataclass(frozen=True)
class Plan:
    """The rows of an item, and the gains that it reports."""

    rows: Sequence[Row | EqualTimeRow]
    gains: Sequence[GainRow] = ()
    # Trainings that are needed, but that are no row, such as those whose weights others start from.
    others: Sequence[Training] = field(default=())

    def resolved(self, store: Store) -> list[Row]:
        """Return the rows whose trainings are known now."""
        rows = []
        for row in self.rows:
            known = row if isinstance(row, Row) else row.resolve(store)
            if known is not None:
                rows.append(known)
        return rows

    def needed(self, store: Store) -> list[StoredTraining]:
        """Return all trainings that are known now, each once, in the order of training.

        A detector with groups and its baseline follow each other, so that they run side by side.
        Other programs on the machine make the CPU time of a step longer, and then do so for both
        alike. The detector with groups is the first, because it takes longer.
        """
        trainings: dict[Training, None] = dict.fromkeys(self.others)
        resolved = self.resolved(store)
        families = list(dict.fromkeys(row.family for row in resolved))
        rows = sorted(resolved, key=lambda row: (families.index(row.family), row.baseline))
        # Seed by seed, so that an interrupted item has whole seeds.
        most = max((len(row.trainings) for row in rows), default=0)
        for index in range(most):
            for row in rows:
                if index < len(row.trainings):
                    trainings[row.trainings[index]] = None
        return [store.run(training) for training in with_parents(trainings)]

    def waiting(self, store: Store) -> list[EqualTimeRow]:
        """Return the rows whose length is not known yet."""
        return [
            row for row in self.rows if isinstance(row, EqualTimeRow) and row.resolve(store) is None
        ]


def with_parents(trainings: dict[Training, None]) -> Iterator[Training]:
    """Yield the trainings, each after those whose weights it starts from, and each once."""
    seen: set[Training] = set()
    for training in trainings:
        chain = []
        current: Training | None = training
        while current is not None and current not in seen:
            chain.append(current)
            seen.add(current)
            current = current.parent
        yield from reversed(chain)


def seeds_of(first: int, count: int) -> range:
    """Return the seeds of an item."""
    return range(first, first + count)


__all__ = ["EqualTimeRow", "Field", "GainRow", "Plan", "Row", "seeds_of"]
