"""The page of `python -m benchmarks all`: the table of every part, and the machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import measure

from groupdetr.report.page import Cell, Column, Html, facts, page, prose, section, table

LEAD = (
    "Absolute times depend on the machine; the results are the ratios within one part. Variants "
    "take turns in random order. Times are medians over rounds: of process time on a CPU, and of "
    "wall time on a GPU. Speed-ups are medians of the ratios within rounds."
)


def render(content: Mapping[str, Any]) -> str:
    """Return the page as HTML. ``content`` is that of the JSON file."""
    results: Mapping[str, Any] = content["parts"]
    body: list[Html] = []
    missing = {name: result["reason"] for name, result in results.items() if "reason" in result}
    if missing:
        body.append(section("Not run", facts(missing)))
    machines: dict[str, Any] = {}
    for name, result in results.items():
        if "reason" not in result:
            rows_tables = [rows_table(rows) for rows in measure.divided(result["results"])]
            body.append(section(result["title"], *rows_tables, origin(result)))
            machines[name] = result["environment"]
    body += machine_sections(machines)
    quick = any(result["quick"] for result in results.values())
    title = "Benchmarks, quick" if quick else "Benchmarks"
    return page("Group DETR", title, LEAD, body)


def rows_table(rows: Mapping[str, Mapping[str, Any]]) -> Html:
    """Return a table with one row for each name. A missing figure is a dash."""
    names = measure.column_names(rows)
    columns = [Column(""), *(Column(name, digits=0) for name in names)]
    cells: list[list[Cell]] = []
    for row_name, row in rows.items():
        figures = [measure.format_cell(row.get(name)) or None for name in names]
        cells.append([row_name, *figures])
    return table(columns, cells)


def origin(result: Mapping[str, Any]) -> Html:
    """Return a line that says how a table was measured."""
    size = ", quick" if result["quick"] else ""
    date = result["environment"]["date"]
    return prose(f"{result['command']} ({date}, {result['device']}{size})")


def machine_sections(machines: Mapping[str, Mapping[str, Any]]) -> list[Html]:
    """Return a section for each machine and its versions, with the names of its parts."""
    names_of: list[tuple[Mapping[str, Any], list[str]]] = []
    for name, machine in machines.items():
        for other, names in names_of:
            if other == machine:
                names.append(name)
                break
        else:
            names_of.append((machine, [name]))
    sections = []
    for machine, names in names_of:
        of_parts = f" of {', '.join(names)}" if len(names_of) > 1 else ""
        values = dict(machine)
        versions = values.pop("packages")
        values["gpus"] = ", ".join(values["gpus"]) or "none"
        values |= {package: version or "not installed" for package, version in versions.items()}
        sections.append(section(f"Machine and versions{of_parts}", facts(values)))
    return sections
