"""The measured tables of the README files, which `python -m benchmarks tables` writes.

``benchmarks/results/NAME.json`` is a file that `python -m benchmarks all` wrote. In a page, what is
between ``<!-- benchmarks: NAME -->`` and ``<!-- end of benchmarks -->`` are the most important
figures of the file. After ``<!-- benchmarks: NAME PART -->`` it is the whole table of a part.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
PAGES = (ROOT / "README.md", ROOT / "benchmarks/README.md")
MARKED = re.compile(
    r"<!-- benchmarks: (?P<name>\S+)(?: (?P<part>\S+))? -->\n"
    r"(?P<text>.*?)<!-- end of benchmarks -->",
    re.DOTALL,
)


@dataclass(frozen=True)
class Headline:
    """An important figure: a sentence about cells of the table of a part.

    ``figure`` is a format string of the ``cells``, which are row and column of each.
    """

    part: str
    what: str
    figure: str
    cells: tuple[tuple[str, str], ...]


HEADLINES = (
    Headline(
        "official",
        "Training step of `conditional-detr-r50`, K = 11, compared with the authors' branch",
        "{0:.2f} times as fast, {1:,} operations instead of {2:,}",
        (
            ("K = 11, ours", "speed-up"),
            ("K = 11, ours", "operations"),
            ("K = 11, theirs", "operations"),
        ),
    ),
    Headline(
        "official",
        "The same with K = 1",
        "{0:.2f} times as fast",
        (("K = 1, ours", "speed-up"),),
    ),
    Headline(
        "official",
        "Memory that a step with K = 11 keeps for the backward pass",
        "{0:,.0f} MiB; one group at a time {1:,.0f}; the authors' {2:,.0f}",
        (
            ("K = 11, ours", "kept, MiB"),
            ("K = 11, ours, in chunks of 1", "kept, MiB"),
            ("K = 11, theirs", "kept, MiB"),
        ),
    ),
    Headline(
        "step",
        "Training step of `conditional-detr-r50` with eleven groups, compared with one",
        "{0:.2f} times the time ({1} pixels)",
        (("K = 11", "ratio"), ("K = 11", "images")),
    ),
    Headline(
        "step-coco",
        "The same with larger images",
        "{0:.2f} times the time ({1} pixels); one group at a time {2:.2f} times",
        (("K = 11", "ratio"), ("K = 11", "images"), ("K = 11 in chunks of 1", "ratio")),
    ),
    Headline(
        "rf-detr",
        "Training step of `rf-detr-nano`, K = 13, compared with rfdetr",
        "{0:.2f} times as fast",
        (("K = 13, ours", "speed-up"),),
    ),
    Headline(
        "rf-detr",
        "Memory that a step of `rf-detr-nano` keeps, K = 13 one group at a time",
        "{0:,.0f} MiB; rfdetr's thirteen {1:,.0f}",
        (
            ("K = 13, ours, one group at a time", "kept, MiB"),
            ("K = 13, rfdetr", "kept, MiB"),
        ),
    ),
    Headline(
        "criterion",
        "Matching and losses of 100 + 100 objects, compared with LW-DETR's",
        "{0:.1f} times as fast",
        (("100 + 100 objects, ours", "over LW-DETR"),),
    ),
    Headline(
        "criterion",
        "Matching and losses of 100 + 100 objects, compared with rfdetr's",
        "{0:.1f} times as fast",
        (("100 + 100 objects, ours", "over rfdetr"),),
    ),
    Headline(
        "attention",
        "Self-attention within groups, compared with LW-DETR's",
        "{0:.2f} times as fast",
        (("self-attention, ours", "speed-up"),),
    ),
    Headline(
        "loading",
        "Reading COCO annotations, compared with pycocotools",
        "{0:.1f} times as fast, from the cache {1:.0f} times",
        (("groupdetr", "speed-up"), ("groupdetr, from the cache", "speed-up")),
    ),
    Headline(
        "data",
        "Decoding and augmenting an image, compared with Pillow and torchvision",
        "{0:.1f} times as fast",
        (("decode and augment, ours", "speed-up"),),
    ),
    Headline(
        "folder",
        "Images a second of `predict FOLDER` with a network of 10 ms",
        "{0:.1f}; {1:.2f} times Ultralytics', {2:.2f} times rfdetr's",
        (
            ("ours", "images a second"),
            ("Ultralytics", "ours is as fast"),
            ("rfdetr", "ours is as fast"),
        ),
    ),
    Headline(
        "ranks",
        "Images a second of a training in two processes, compared with one",
        "{0:.2f} times as many",
        (("2 processes", "scaling"),),
    ),
    Headline(
        "export",
        "Inference of the exported detector in ONNX Runtime, compared with PyTorch",
        "{0:.2f} times as fast",
        (("onnx", "speed-up"),),
    ),
)


def headlines(results: Mapping[str, Any]) -> str:
    """Return the table of the most important figures in Markdown.

    ``results`` has the parts of a file. Figures that it does not have are left out, such as those
    of comparisons with code that was not there.
    """
    lines = ["| | |", "|---|---|"]
    used: list[Mapping[str, Any]] = []
    for headline in HEADLINES:
        part = results.get(headline.part, {})
        rows: Mapping[str, Mapping[str, Any]] = part.get("results", {})
        if all(column in rows.get(row, {}) for row, column in headline.cells):
            values = [rows[row][column] for row, column in headline.cells]
            quick = " (quick)" if part["quick"] else ""
            lines.append(f"| {headline.what} | {headline.figure.format(*values)}{quick} |")
            used.append(part)
    return "\n".join([*lines, "", origin("python -m benchmarks all", used)]) + "\n"


def part_table(part: Mapping[str, Any]) -> str:
    """Return the whole table of a part in Markdown."""
    import measure

    lines = [*measure.markdown(part["results"]), "", origin(part["command"], [part])]
    return "\n".join(lines) + "\n"


def origin(command: str, used: list[Mapping[str, Any]]) -> str:
    """Return lines of at most 120 columns that say when and on what the parts were measured."""
    environments = [part["environment"] for part in used]
    dates = sorted({environment["date"] for environment in environments})
    machines = sorted({machine_of(part) for part in used})
    versions = sorted({environment["packages"]["torch"] for environment in environments})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    text = f"`{command}`, {when}: {' and '.join(machines)}, torch {' and '.join(versions)}."
    if any(part["quick"] for part in used):
        text += " Quick: with `--quick`, which is smaller and has fewer rounds."
    return textwrap.fill(text, 120)


def machine_of(part: Mapping[str, Any]) -> str:
    """Return the name of the processor or the GPU that a part was measured on."""
    environment = part["environment"]
    if part["device"] == "cpu":
        return f"one thread of {environment['processor']}"
    return str(environment["gpus"][0])


def read(name: str) -> Mapping[str, Any]:
    """Return the parts of ``benchmarks/results/NAME.json``."""
    content = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    parts: Mapping[str, Any] = content["parts"]
    return parts


def marked_table(match: re.Match[str]) -> str:
    """Return the table that belongs to a mark."""
    results = read(match["name"])
    return part_table(results[match["part"]]) if match["part"] else headlines(results)


def updated(page: str) -> str:
    """Return the text of a page with the tables that the files have."""

    def replace(match: re.Match[str]) -> str:
        before = match.start("text") - match.start()
        return f"{match[0][:before]}{marked_table(match)}<!-- end of benchmarks -->"

    return MARKED.sub(replace, page)


def write_all() -> None:
    """Write the tables of all pages."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        page.write_text(updated(text), encoding="utf-8")
