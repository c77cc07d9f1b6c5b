"""What an item has measured: results.json, from which its page and its table are drawn."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from groupdetr.engine.run_folder import write_json
from groupdetr.errors import UsageError
from groupdetr.paper.plan import Row
from groupdetr.paper.trainings import Store
from groupdetr.report.comparison import Configuration, format_gain, format_value
from groupdetr.report.comparison_page import ComparisonPage, GainRow
from groupdetr.report.run_summary import summarize_run
from groupdetr.structures.json_object import JsonObject
from groupdetr.version import __version__

REMEDY = "pass a results.json that groupdetr paper wrote"


@dataclass(frozen=True)
class Results:
    """The numbers of an item. ``extra`` has what only this item measures."""

    item: str
    scale: str  # in words
    metric: str  # the main one, such as "AP"
    metrics: Sequence[str]
    configurations: Sequence[Configuration] = ()
    gains: Sequence[GainRow] = ()
    protocol: Mapping[str, object] = field(default_factory=dict)
    environment: JsonObject = field(default_factory=dict)
    extra: JsonObject = field(default_factory=dict)
    errors: Sequence[str] = ()  # metrics of which lower is better
    # Those that differ from the first, if the results of several files were joined.
    other_environments: Sequence[JsonObject] = ()

    def page(self, source: str) -> ComparisonPage:
        """Return the numbers as the parts of a page take them. ``source`` is the paper's table."""
        return ComparisonPage(
            self.configurations, self.gains, self.metric, self.metrics, source, self.errors
        )

    def to_json(self) -> JsonObject:
        """Return the content of results.json."""
        page = self.page("")
        gains = []
        for row in self.gains:
            measured = row.measured(page.by_key, self.metric)
            gains.append(
                {
                    "label": row.label,
                    "of": row.of,
                    "over": row.over,
                    "gain": _finite(measured.mean),
                    "low": _finite(measured.low),
                    "high": _finite(measured.high),
                    "seeds": measured.seeds,
                    "paper": row.reported,
                }
            )
        return {
            "item": self.item,
            "groupdetr": __version__,
            "scale": self.scale,
            "metric": self.metric,
            "metrics": list(self.metrics),
            "errors": list(self.errors),
            "configurations": [item.to_json() for item in self.configurations],
            "gains": gains,
            "protocol": {name: str(value) for name, value in self.protocol.items()},
            "environment": self.environment,
            "other_environments": list(self.other_environments),
            "extra": self.extra,
        }

    @classmethod
    def from_json(cls, content: JsonObject) -> Results:
        """Return the results that `to_json` returned."""
        gains = [
            GainRow(row["label"], row["over"], row["of"], row["paper"]) for row in content["gains"]
        ]
        return cls(
            item=content["item"],
            scale=content["scale"],
            metric=content["metric"],
            metrics=content["metrics"],
            configurations=[Configuration.from_json(row) for row in content["configurations"]],
            gains=gains,
            protocol=content["protocol"],
            environment=content["environment"],
            extra=content["extra"],
            errors=content["errors"],
            # Older files do not have it.
            other_environments=content.get("other_environments", ()),
        )

    @classmethod
    def read(cls, file: Path) -> Results:
        """Read a results.json. `UsageError` if the file is none."""
        try:
            return cls.from_json(json.loads(file.read_text(encoding="utf-8")))
        except OSError as error:
            raise UsageError(
                f"the results cannot be read: {error.strerror}", str(file), REMEDY
            ) from error
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise UsageError("this file does not hold results", str(file), REMEDY) from error

    def write(self, file: Path) -> None:
        write_json(file, self.to_json())


def _finite(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


def configuration_of(row: Row, store: Store) -> Configuration:
    """Return the results of a row whose trainings are done."""
    runs = [summarize_run(store.run(training).run) for training in row.trainings]
    first = row.trainings[0]
    details: dict[str, object] = {"model": first.model, "queries": first.queries}
    details.update(first.fields)
    return Configuration(
        key=row.key,
        label=row.label,
        runs=runs,
        baseline=row.baseline,
        family=row.family,
        reported=row.reported,
        details=details,
    )


def markdown_table(page: ComparisonPage) -> str:
    """Return the configurations and the gains as tables of Markdown."""
    has_paper = any(item.reported is not None for item in page.configurations)
    names = ["", "K", "epochs", f"{page.metric}, by seed", "mean ± deviation"]
    names += [f"the paper's {page.metric}"] if has_paper else []
    names += [f"{page.time_name}", "a step"]
    rows = []
    for item in page.configurations:
        values = [format_value(value) for value in item.percentages(page.metric)]
        main = item.metric(page.metric)
        row = [item.label, str(item.groups), f"{item.epochs:g}", " / ".join(values)]
        row.append(f"{format_value(main.mean)} {main}".strip())
        row += ["" if item.reported is None else f"{item.reported:.1f}"] if has_paper else []
        row += [f"{getattr(item, page.time_key):.0f} s", f"{page.step_ratio(item):.2f}"]
        rows.append(row)
    text = markdown(names, rows)
    if not page.gains:
        return text
    names = ["gain", page.metric, "95 % interval", "the paper's"]
    rows = []
    for gain_row in page.gains:
        measured = gain_row.measured(page.by_key, page.metric)
        paper = "" if gain_row.reported is None else format_gain(gain_row.reported)
        interval = measured.interval or measured.reason or "–"
        rows.append([gain_row.label, format_gain(measured.mean), interval, paper])
    return f"{text}\n{markdown(names, rows)}"


def markdown(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of Markdown."""
    lines = [_line(names), _line(["---"] * len(names))]
    lines += [_line(row) for row in rows]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
