"""What would break training on a data set, or mislead it: all of it at once, before the first step.

Bad data never raises here: whatever is found becomes a finding and the search goes on. What each code means, and
whether it stops training, stands in ``findings.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from groupdetr.data import mask_rules
from groupdetr.data.findings import Finding, RefusedError, shown
from groupdetr.data.formats import DataSet, survey
from groupdetr.data.image_checks import inspect_pictures
from groupdetr.data.statistics import SplitCounts, count, remarks
from groupdetr.errors import DataError

_CLASSES = 12  # lines of a class histogram
_SHOWN = 3  # findings of one code on the console; JSON has all


@dataclass(frozen=True, eq=False)
class Report:
    """What a check found. ``dataset`` is the sound part of the data, for a caller that goes on to train."""

    root: Path
    errors: list[Finding]
    warnings: list[Finding]
    splits: dict[str, SplitCounts] = field(default_factory=dict)
    dataset: DataSet | None = None

    @property
    def verdict(self) -> str:
        return "refuse" if self.errors else "warn" if self.warnings else "ok"

    @property
    def images(self) -> int:
        """Images of the train split, those without objects included: what an epoch goes through."""
        return self.splits["train"].images if "train" in self.splits else 0

    @property
    def boxes(self) -> int:
        """Boxes of the train split that are learned: no crowds, and none without area within its image."""
        return self.splits["train"].boxes if "train" in self.splits else 0

    def raise_for_errors(self) -> None:
        if self.errors:
            first, more = self.errors[0], len(self.errors) - 1
            rest = f"\n{more} more: groupdetr check {self.root}" if more else ""
            raise DataError(first.what, first.where, first.remedy + rest)

    def to_json(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict,
            "errors": [finding.to_json() for finding in self.errors],
            "warnings": [finding.to_json() for finding in self.warnings],
            "images": self.images,
            "boxes": self.boxes,
            "splits": {name: counts.to_json() for name, counts in self.splits.items()},
        }

    def render(self) -> str:
        """The report as plain text: findings by code, the first few of each, and the figures of the splits."""
        lines = [
            f"{self.verdict}: {_plural(self.errors, 'error')}, {_plural(self.warnings, 'warning')}"
        ]
        for severity, findings in (("error", self.errors), ("warning", self.warnings)):
            lines += _grouped(severity, findings)
        for name, counts in self.splits.items():
            lines += [_line(name, counts), *_bars(counts)]
        return "\n".join(lines)


def check(
    data: Path | str,
    images: Path | str | None = None,
    num_queries: int | None = None,
    decode: bool = True,
    workers: int | None = None,
    masks: bool = False,
) -> Report:
    """Everything that is wrong with a data set. ``num_queries`` is that of one group.

    Without ``decode`` only the headers of the pictures are read: quick, but broken pictures pass. With ``masks``
    every object has to have one.
    """
    try:
        dataset, findings = survey(data, images, masks=masks)
    except RefusedError as error:  # no files to look at
        return Report(Path(data), [error.finding], [])
    splits = {name: count(split) for name, split in dataset.splits.items()}
    for name, split in dataset.splits.items():
        findings += remarks(split, splits[name], num_queries)
        findings += mask_rules.remarks(split) if masks else []
    findings += inspect_pictures(dataset.splits.values(), decode, workers)
    errors = [finding for finding in findings if finding.is_error]
    return Report(Path(data), errors, [f for f in findings if not f.is_error], splits, dataset)


def _plural(findings: list[Finding], noun: str) -> str:
    return f"{len(findings)} {noun}{'s' * (len(findings) != 1)}"


def _grouped(severity: str, findings: list[Finding]) -> Iterator[str]:
    by_code: dict[str, list[Finding]] = {}
    for finding in findings:
        by_code.setdefault(finding.code, []).append(finding)
    for code, same in by_code.items():
        yield f"{severity}: {code} ({len(same)}): {same[0].remedy}"
        yield from (f"    {finding.where}: {finding.what}" for finding in same[:_SHOWN])
        if len(same) > _SHOWN:
            yield f"    and {len(same) - _SHOWN} more"


def _bars(counts: SplitCounts) -> Iterator[str]:
    """The class histogram, the most frequent first; rare ones of a long tail are counted together."""
    classes = sorted(counts.classes, key=lambda c: -c["boxes"])
    frequent, rest = classes[:_CLASSES], classes[_CLASSES:]
    names = [shown(c["name"]) for c in frequent]
    for name, c in zip(names, frequent):
        bar = "█" * round(30 * c["boxes"] / max(1, classes[0]["boxes"]))
        yield f"    {name:<{max(map(len, names))}} {c['boxes']:>7} {bar}"
    if rest:
        yield f"    and {len(rest)} more classes with {sum(c['boxes'] for c in rest)} boxes"


def _line(name: str, counts: SplitCounts) -> str:
    objects, sizes = counts.objects_per_image, counts.sizes
    return (
        f"{name}: {counts.images} images ({counts.empty_images} without objects), {counts.boxes} boxes of "
        f"{len(counts.classes)} classes; objects per image p50 {objects['p50']:.0f}, p99 {objects['p99']:.0f}, "
        f"max {objects['max']:.0f}; small {sizes['small']}, medium {sizes['medium']}, large {sizes['large']}"
    )
