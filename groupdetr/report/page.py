"""A small vocabulary for one self-contained HTML page: prose, tiles, tables and pictures, nothing from outside.

Words go in as plain text and are escaped here; only what these functions return is :data:`Html`.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NewType

from PIL import Image

from groupdetr.report.style import CSS

Html = NewType("Html", str)
Cell = str | float | int | Html | None


def text(words: object) -> Html:
    """Anything as words."""
    return Html(html.escape(str(words)))


def join(parts: Iterable[Html]) -> Html:
    return Html("\n".join(parts))


def page(kicker: str, title: str, lead: str, body: Sequence[Html], footer: str = "") -> str:
    """The whole document. ``kicker`` is the line above the title, ``lead`` the first paragraph."""
    foot = f"<footer>{text(footer)}</footer>" if footer else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{text(title)}</title>
<link rel="icon" href="data:,">
<style>
{CSS}
</style>
</head>
<body>
<main>
<header>
<div class="kicker">{text(kicker)}</div>
<h1>{text(title)}</h1>
<p class="lead">{text(lead)}</p>
</header>
{join(body)}
{foot}
</main>
</body>
</html>
"""


def section(title: str, *parts: Html) -> Html:
    return Html(f"<section>\n<h2>{text(title)}</h2>\n{join(parts)}\n</section>")


def paragraph(*parts: str | Html) -> Html:
    """Sentences; plain strings must have gone through :func:`text`, links through :func:`link`."""
    return Html(f"<p>{''.join(parts)}</p>")


def prose(*paragraphs: str) -> Html:
    """Plain text, a paragraph for each argument."""
    return join(paragraph(text(words)) for words in paragraphs)


def link(words: str, address: str) -> Html:
    return Html(f'<a href="{html.escape(address)}">{text(words)}</a>')


@dataclass(frozen=True)
class Tile:
    """One figure that a reader should take away."""

    label: str
    value: str
    unit: str = ""
    note: str = ""
    strong: bool = False


def tiles(items: Sequence[Tile]) -> Html:
    return Html(f'<dl class="tiles">\n{join(map(_tile, items))}\n</dl>')


def _tile(tile: Tile) -> Html:
    unit = f'<span class="unit">{text(tile.unit)}</span>' if tile.unit else ""
    note = f'<dd class="note">{text(tile.note)}</dd>' if tile.note else ""
    value = f'<dd class="value">{text(tile.value)}{unit}</dd>'
    return Html(
        f'<div class="tile{" strong" * tile.strong}"><dt>{text(tile.label)}</dt>{value}{note}</div>'
    )


@dataclass(frozen=True)
class Column:
    """A column of a table; ``digits`` makes it one of numbers."""

    name: str
    digits: int | None = None
    best: Literal["", "max", "min"] = ""


def table(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], caption: str = "") -> Html:
    """Numbers to the right, missing ones as a dash, the best of a column marked if there is a choice."""
    title = f"<caption>{text(caption)}</caption>" if caption else ""
    head = "".join(
        f'<th scope="col"{_aligned(column)}>{text(column.name)}</th>' for column in columns
    )
    cells = list(zip(*rows, strict=True)) if rows else [()] * len(columns)
    best = [_best(column, of_column) for column, of_column in zip(columns, cells, strict=True)]
    body = join(_row(columns, row, best) for row in rows)
    inside = f"{title}\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>"
    return Html(f'<div class="scroll"><table>{inside}</table></div>')


def facts(rows: Mapping[str, object]) -> Html:
    """Names and what they stand for."""
    body = join(
        Html(f'<tr><th scope="row">{text(k)}</th><td>{text(v)}</td></tr>') for k, v in rows.items()
    )
    return Html(f'<table class="facts"><tbody>\n{body}\n</tbody></table>')


def number(value: Cell, digits: int = 0) -> Html:
    """A figure as it is printed; what is missing or undefined is a dash."""
    if not isinstance(value, int | float):
        return text("–" if value is None else value)
    return text(f"{value:,.{digits}f}".replace("-", "−") if math.isfinite(value) else "–")


def _row(columns: Sequence[Column], row: Sequence[Cell], best: Sequence[float | None]) -> Html:
    cells = [f'<th scope="row"{_aligned(columns[0])}>{_shown(columns[0], row[0])}</th>']
    for column, cell, top in list(zip(columns, row, best, strict=True))[1:]:
        cells.append(
            f"<td{_aligned(column, top is not None and cell == top)}>{_shown(column, cell)}</td>"
        )
    return Html(f"<tr>{''.join(cells)}</tr>")


def _shown(column: Column, cell: Cell) -> Html:
    return number(cell, column.digits or 0)


def _aligned(column: Column, best: bool = False) -> str:
    names = ["n"] * (column.digits is not None) + ["best"] * best
    return f' class="{" ".join(names)}"' if names else ""


def _best(column: Column, cells: Sequence[Cell]) -> float | None:
    values = [cell for cell in cells if isinstance(cell, int | float) and math.isfinite(cell)]
    if not column.best or len(set(values)) < 2:
        return None
    return max(values) if column.best == "max" else min(values)


@dataclass(frozen=True)
class Picture:
    """An image and what it shows: ``name`` in bold, then ``caption``."""

    image: Image.Image
    name: str = ""
    caption: str = ""


def strips(rows: Sequence[Sequence[Picture]]) -> Html:
    """Pictures to be compared: a row stays a row on any screen (narrow ones scroll); short rows share a line."""
    return Html(f'<div class="strips">\n{join(map(_strip, rows))}\n</div>')


def _strip(pictures: Sequence[Picture]) -> Html:
    inside = join(map(_figure, pictures))
    return Html(f'<div class="strip" style="--columns:{len(pictures)}">\n{inside}\n</div>')


def gallery(pictures: Sequence[Picture]) -> Html:
    """Pictures that each stand alone, as many in a row as fit."""
    return Html(f'<div class="gallery">\n{join(map(_figure, pictures))}\n</div>')


def wide(pictures: Sequence[Picture]) -> Html:
    """Pictures that each take the width of the page."""
    return Html(f'<div class="wide">\n{join(map(_figure, pictures))}\n</div>')


def swatches(names: Sequence[tuple[str, str]]) -> Html:
    """A legend: (CSS colour, name)."""
    items = (
        f'<li><i style="background:{html.escape(colour)}"></i>{text(name)}</li>'
        for colour, name in names
    )
    return Html(f'<ul class="legend">{"".join(items)}</ul>')


def _figure(picture: Picture) -> Html:
    words = " ".join(part for part in (picture.name, picture.caption) if part)
    bold = f"<b>{text(picture.name)}</b> " if picture.name else ""
    width, height = picture.image.size
    image = f'<img src="{data_uri(picture.image)}" width="{width}" height="{height}" alt="{text(words)}">'
    return Html(f"<figure>{image}<figcaption>{bold}{text(picture.caption)}</figcaption></figure>")


def data_uri(image: Image.Image) -> str:
    """The picture itself as an address. Full colour resolution keeps thin coloured lines clean."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=86, subsampling=0, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
