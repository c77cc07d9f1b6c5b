"""Dataset check: finds everything that would break or mislead training before the first step.

Bad data never raises an error here: every problem becomes a finding, and the check goes on. The
meaning of the codes, and which of them stop training, are defined in ``findings.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from groupdetr.console.text import escape_html, quantity, quote
from groupdetr.data.finding_locations import with_locations
from groupdetr.data.findings import Finding, RefusedError, printable
from groupdetr.data.image_checks import OnProgress, inspect_images
from groupdetr.data.layouts import DatasetSplits, read_with_findings
from groupdetr.data.mask_rules import mask_findings
from groupdetr.data.statistics import SplitStatistics, split_statistics, statistics_findings
from groupdetr.errors import DataError
from groupdetr.structures.json_object import JsonObject

_MAX_CLASSES = 12  # lines of a class histogram
_MAX_FINDINGS = 3  # findings of one code on the console; the JSON output has all


@dataclass(frozen=True, eq=False, repr=False)
class CheckReport:
    """The result of a check. A notebook shows it as a table.

    ``dataset`` is the valid part of the data. A training that follows the check uses it.
    """

    root: Path
    errors: list[Finding]
    warnings: list[Finding]
    splits: dict[str, SplitStatistics] = field(default_factory=dict)
    dataset: DatasetSplits | None = None
    masks: bool = False  # whether segmentations were checked

    @property
    def verdict(self) -> str:
        """Return "refuse" if there are errors, "warn" if there are only warnings, else "ok"."""
        if self.errors:
            return "refuse"
        return "warn" if self.warnings else "ok"

    @property
    def images(self) -> int:
        """The number of images of the train split, including those without objects."""
        return self.splits["train"].images if "train" in self.splits else 0

    @property
    def boxes(self) -> int:
        """The number of trainable boxes of the train split: no crowds, none without area."""
        return self.splits["train"].boxes if "train" in self.splits else 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.root}: {self._headline()}>"

    def raise_for_errors(self) -> None:
        """Raise the first error, if any, as a `DataError`."""
        if not self.errors:
            return
        first = self.errors[0]
        remedy = first.remedy
        if len(self.errors) > 1:
            command = f"groupdetr check {quote(self.root)}"
            if self.masks:
                command = f"groupdetr check {quote(self.root)} --masks"
            remedy += f"\nto list {len(self.errors) - 1} more: {command}"
        raise DataError(first.what, first.where, remedy)

    def to_json(self) -> JsonObject:
        return {
            "verdict": self.verdict,
            "errors": [finding.to_json() for finding in self.errors],
            "warnings": [finding.to_json() for finding in self.warnings],
            "images": self.images,
            "boxes": self.boxes,
            "splits": {name: statistics.to_json() for name, statistics in self.splits.items()},
        }

    def render(self) -> str:
        """Return the report as plain text.

        It has the first findings of each code, and the statistics of the splits.
        """
        lines = [self._headline()]
        lines += _findings_by_code("error", self.errors)
        lines += _findings_by_code("warning", self.warnings)
        for summary, statistics in zip(self.split_summaries(), self.splits.values()):
            lines.append(summary)
            lines += _class_histogram(statistics)
        return "\n".join(lines)

    def _headline(self) -> str:
        """Return the verdict and the numbers of findings."""
        errors = quantity(len(self.errors), "error")
        warnings = quantity(len(self.warnings), "warning")
        return f"{self.verdict}: {errors}, {warnings}"

    def _repr_html_(self) -> str:
        """Return a table with one row for each code of findings, for notebooks."""
        left = 'style="text-align: left"'  # Jupyter aligns cells at the right, as for numbers
        rows = []
        for severity, findings in (("error", self.errors), ("warning", self.warnings)):
            for code, findings_of_code in _by_code(findings).items():
                first = findings_of_code[0]
                example = f"{first.where}: {first.what}"
                cells = (severity, code, str(len(findings_of_code)), example, first.remedy)
                rows.append("".join(f"<td {left}>{escape_html(cell)}</td>" for cell in cells))
        parts = [f"<p>{escape_html(self.root)}: {self._headline()}</p>"]
        if rows:
            titles = ("", "code", "number", "the first one", "what to do")
            header = "".join(f"<th {left}>{title}</th>" for title in titles)
            body = "".join(f"<tr>{row}</tr>" for row in rows)
            parts.append(f"<table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table>")
        summaries = "\n".join(self.split_summaries())
        parts.append(f"<pre>{escape_html(summaries)}</pre>")
        return "\n".join(parts)

    def split_summaries(self) -> list[str]:
        """Return one line for each split: its images, objects and classes."""
        held_out = self.dataset is not None and self.dataset.held_out
        titles = {"val": "val (held out of train)"} if held_out else {}
        return [
            _summary(titles.get(name, name), statistics) for name, statistics in self.splits.items()
        ]


def check(
    data: Path | str,
    images: Path | str | None = None,
    num_queries: int | None = None,
    decode: bool = True,
    workers: int | None = None,
    masks: bool = False,
    cache: bool = False,
    on_progress: OnProgress | None = None,
) -> CheckReport:
    """Return all problems of a dataset. ``num_queries`` is that of one group.

    Without ``decode`` only the headers of the images are read: this is quick, but does not find
    broken images. With ``masks`` every object must have a segmentation. With ``cache``, a large
    COCO file and the images of a large dataset are not read again if they have not changed since
    they were read before (`annotation_cache.py`, `checked_images.py`). ``on_progress`` is called
    with the number of images that are done, and of all.
    """
    try:
        dataset, findings = read_with_findings(data, images, masks=masks, cache=cache)
    except RefusedError as error:  # there is no file to check
        return CheckReport(Path(data), [error.finding], [])
    except DataError as error:  # of the reader of another format
        return CheckReport(Path(data), [reader_finding(error, Path(data))], [])
    statistics = {name: split_statistics(split) for name, split in dataset.splits.items()}
    for name, split in dataset.splits.items():
        findings += statistics_findings(split, statistics[name], num_queries)
        if masks:
            findings += mask_findings(split)
    splits = dataset.splits.values()
    findings += with_locations(inspect_images(splits, decode, workers, cache, on_progress), splits)
    errors = [finding for finding in findings if finding.is_error]
    warnings = [finding for finding in findings if not finding.is_error]
    return CheckReport(Path(data), errors, warnings, statistics, dataset, masks)


def reader_finding(error: DataError, data: Path) -> Finding:
    """Return the error of a reader as a finding."""
    what = f"{error.what} ({error.remedy})" if error.remedy else error.what
    return Finding("unreadable-format", error.where or str(data), "", what)


def _by_code(findings: list[Finding]) -> dict[str, list[Finding]]:
    by_code: dict[str, list[Finding]] = {}
    for finding in findings:
        by_code.setdefault(finding.code, []).append(finding)
    return by_code


def _findings_by_code(severity: str, findings: list[Finding]) -> Iterator[str]:
    for code, findings_of_code in _by_code(findings).items():
        count = len(findings_of_code)
        yield f"{severity}: {code} ({count}): {findings_of_code[0].remedy}"
        for finding in findings_of_code[:_MAX_FINDINGS]:
            yield f"    {finding.where}: {finding.what}"
        if count > _MAX_FINDINGS:
            yield f"    and {count - _MAX_FINDINGS} more"


def _class_histogram(statistics: SplitStatistics) -> Iterator[str]:
    """Yield one line for each class, the most frequent first, and one for all remaining ones."""
    classes = sorted(statistics.classes, key=lambda row: -row.boxes)
    frequent = classes[:_MAX_CLASSES]
    remaining = classes[_MAX_CLASSES:]
    names = [printable(row.name) for row in frequent]
    name_width = max((len(name) for name in names), default=0)
    for name, row in zip(names, frequent):
        share_of_largest = row.boxes / max(1, classes[0].boxes)
        bar = "█" * round(30 * share_of_largest)
        yield f"    {name:<{name_width}} {row.boxes:>7} {bar}"
    if remaining:
        boxes = sum(row.boxes for row in remaining)
        yield f"    and {len(remaining)} more classes with {boxes} boxes"


def _summary(name: str, statistics: SplitStatistics) -> str:
    """Return one line: images, boxes, objects per image and sizes of a split."""
    objects = statistics.objects_per_image
    sizes = statistics.sizes
    images = f"{quantity(statistics.images, 'image')} ({statistics.empty_images} without objects)"
    classes = quantity(len(statistics.classes), "class", "classes")
    boxes = f"{quantity(statistics.boxes, 'box', 'boxes')} of {classes}"
    per_image = f"p50 {objects['p50']:.0f}, p99 {objects['p99']:.0f}, max {objects['max']:.0f}"
    by_size = f"small {sizes['small']}, medium {sizes['medium']}, large {sizes['large']}"
    return f"{name}: {images}, {boxes}; objects per image {per_image}; {by_size}"
