"""Formats of results that all tasks share: metrics with their tables, CSV files, counts."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groupdetr.console.output import PlainConsole, create_console
from groupdetr.console.text import escape_controls, escape_html
from groupdetr.structures.json_object import JsonObject

TableRow = dict[str, str]  # column -> cell


@dataclass(frozen=True)
class MetricsTable:
    """One of the tables that show the metrics of an evaluation."""

    rows: Sequence[TableRow]
    note: str = ""  # a line below the table


class Metrics(dict[str, Any]):
    """The metrics of an evaluation by name, the content of metrics.json. Undefined ones are None.

    It is a dictionary of plain data. A notebook shows its tables, and so does `show`.

    >>> metrics = groupdetr.evaluate("runs/mine")
    >>> metrics["AP"], metrics["per_class"][0]["name"]
    """

    def __init__(
        self,
        content: JsonObject,
        tables: Sequence[MetricsTable],
        folder: Path,
        subject: str = "",
    ) -> None:
        super().__init__(content)
        self.tables = tables
        self.folder = folder  # of metrics.json and the other files of the evaluation
        self.subject = subject  # a line that says what was evaluated

    def show(self) -> None:
        """Print the metrics of all classes together, of every class, and of every group."""
        console = create_console()
        if self.subject:
            console.print(f"evaluated {self.subject}")
        for table in self.tables:
            console.print_table(table.rows)
            if table.note:
                console.print(table.note)
        console.print(f"written to {self.folder}")

    def _repr_html_(self) -> str:
        """Return the tables, for notebooks."""
        parts = []
        for table in self.tables:
            parts.append(format_html(table.rows))
            if table.note:
                parts.append(f"<p>{escape_html(table.note)}</p>")
        return "\n".join(parts)

    def _repr_pretty_(self, printer: Any, _cycle: bool) -> None:
        """Print the tables of all classes together and of every group, where IPython has no HTML.

        A saved notebook has this text, too.
        """
        text = io.StringIO()
        console = PlainConsole(file=text, color_system=None)
        for table in self.tables:
            if table.rows and "class" not in table.rows[0]:
                console.print_table(table.rows)
        printer.text("\n".join(line.rstrip() for line in text.getvalue().splitlines()))


def format_html(rows: Sequence[Mapping[str, str]]) -> str:
    """Return an HTML table without styles, with the keys of the rows as its header."""
    header = "".join(f"<th>{escape_html(column)}</th>" for column in (rows[0] if rows else ()))
    body = []
    for row in rows:
        cells = "".join(f"<td>{escape_html(cell)}</td>" for cell in row.values())
        body.append(f"<tr>{cells}</tr>")
    return f"<table><thead><tr>{header}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def format_csv(rows: Sequence[Mapping[str, str]]) -> str:
    """Return a CSV file, with the keys of the rows as its header."""
    columns = list(rows[0]) if rows else []
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def format_counts(names: Sequence[str]) -> str:
    """Return how many objects of each class there are, given their class names: "3 car, 1 bus"."""
    counts = [f"{count} {escape_controls(name)}" for name, count in Counter(names).items()]
    return ", ".join(counts) or "no objects"
