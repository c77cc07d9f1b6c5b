"""Text formats of results that all tasks share: tables, CSV files and numbers of objects."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence

from rich.table import Table

TableRow = dict[str, str]  # column -> cell


def format_table(rows: Sequence[Mapping[str, str]]) -> Table:
    """Return a table for the terminal, with the keys of the rows as its header."""
    columns = list(rows[0]) if rows else []
    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row.values())
    return table


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
    counts = [f"{count} {name}" for name, count in Counter(names).items()]
    return ", ".join(counts) or "no objects"
