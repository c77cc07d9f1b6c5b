"""Building blocks of a self-contained HTML page: text, tiles, tables and images.

A page loads nothing from elsewhere. All text is passed as plain strings and is escaped by these
functions. Only what they return is :data:`Html`.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NewType

from PIL import Image

from groupdetr.console.text import escape_html
from groupdetr.report.style import CSS

Html = NewType("Html", str)
Cell = str | float | int | Html | None


def escape(content: object) -> Html:
    """Return the string of any object as text of the page: nothing in it is read as HTML."""
    return Html(escape_html(content))


def join(parts: Iterable[Html]) -> Html:
    """Join parts of a page, each on its own line."""
    return Html("\n".join(parts))


def page(kicker: str, title: str, lead: str, body: Sequence[Html], footer: str = "") -> str:
    """Return the complete document.

    ``kicker`` is the line above the title and ``lead`` is the first paragraph.
    """
    escaped_title = escape(title)
    footer_element = f"<footer>{escape(footer)}</footer>" if footer else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escaped_title}</title>
<link rel="icon" href="data:,">
<style>
{CSS}
</style>
</head>
<body>
<main>
<header>
<div class="kicker">{escape(kicker)}</div>
<h1>{escaped_title}</h1>
<p class="lead">{escape(lead)}</p>
</header>
{join(body)}
{footer_element}
</main>
</body>
</html>
"""


def section(title: str, *parts: Html) -> Html:
    """Return a section with a heading."""
    return Html(f"<section>\n<h2>{escape(title)}</h2>\n{join(parts)}\n</section>")


def paragraph(*parts: Html) -> Html:
    """Return one paragraph of parts made by :func:`escape` and :func:`link`."""
    return Html(f"<p>{''.join(parts)}</p>")


def prose(*paragraphs: str) -> Html:
    """Return one paragraph for each argument, a plain string."""
    return join(paragraph(escape(plain)) for plain in paragraphs)


def link(label: str, address: str) -> Html:
    return Html(f'<a href="{escape(address)}">{escape(label)}</a>')


@dataclass(frozen=True)
class Tile:
    """One important number, shown large at the top of the page."""

    label: str
    value: str
    unit: str = ""
    note: str = ""
    strong: bool = False  # True: highlighted


def tiles(items: Sequence[Tile]) -> Html:
    content = join(_tile(item) for item in items)
    # As many in a row as leave no gap, four at most.
    columns = next((count for count in (3, 4, 2) if len(items) % count == 0), 3)
    columns = min(columns, len(items) or 1)
    return Html(f'<dl class="tiles" style="--columns:{columns}">\n{content}\n</dl>')


def _tile(tile: Tile) -> Html:
    css_class = "tile strong" if tile.strong else "tile"
    label = f"<dt>{escape(tile.label)}</dt>"
    unit = f'<span class="unit">{escape(tile.unit)}</span>' if tile.unit else ""
    value = f'<dd class="value">{escape(tile.value)}{unit}</dd>'
    note = f'<dd class="note">{escape(tile.note)}</dd>' if tile.note else ""
    return Html(f'<div class="{css_class}">{label}{value}{note}</div>')


@dataclass(frozen=True)
class Column:
    """A column of a table. With ``digits`` it is a column of numbers with that many decimals."""

    name: str
    digits: int | None = None
    best: Literal["", "max", "min"] = ""  # which number of the column is highlighted, if any


def table(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], caption: str = "") -> Html:
    """Return a table.

    Numbers are aligned to the right and missing ones are a dash. The best number of a column is
    highlighted if its numbers differ.
    """
    if any(len(row) != len(columns) for row in rows):
        raise ValueError("every row of a table needs one cell for each column")
    caption_element = f"<caption>{escape(caption)}</caption>" if caption else ""
    head = ""
    best_values = []
    for index, column in enumerate(columns):
        head += f'<th scope="col"{_class_attribute(column)}>{escape(column.name)}</th>'
        best_values.append(_best_value(column, [row[index] for row in rows]))
    body = join(_row(columns, row, best_values) for row in rows)
    content = f"{caption_element}\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>"
    return Html(f'<div class="scroll"><table>{content}</table></div>')


def facts(rows: Mapping[str, object]) -> Html:
    """Return a table with one row for each name and its value."""
    body = []
    for name, value in rows.items():
        row = f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>'
        body.append(Html(row))
    return Html(f'<table class="facts"><tbody>\n{join(body)}\n</tbody></table>')


def number(value: Cell, digits: int = 0) -> Html:
    """Return a number with ``digits`` decimals; a dash if it is missing or not finite."""
    if value is None:
        return escape("–")
    if not isinstance(value, int | float):
        return escape(value)
    if not math.isfinite(value):
        return escape("–")
    # A proper minus sign is as wide as a digit.
    return escape(f"{value:,.{digits}f}".replace("-", "−"))


def _row(
    columns: Sequence[Column], row: Sequence[Cell], best_values: Sequence[float | None]
) -> Html:
    # The first cell is the heading of the row.
    heading = number(row[0], columns[0].digits or 0)
    cells = [f'<th scope="row"{_class_attribute(columns[0])}>{heading}</th>']
    for column, cell, best_value in zip(columns[1:], row[1:], best_values[1:]):
        is_best = best_value is not None and cell == best_value
        content = number(cell, column.digits or 0)
        cells.append(f"<td{_class_attribute(column, is_best)}>{content}</td>")
    return Html(f"<tr>{''.join(cells)}</tr>")


def _class_attribute(column: Column, is_best: bool = False) -> str:
    """Return the class attribute of a cell: "n" for numbers and "best" for the best one."""
    names = []
    if column.digits is not None:
        names.append("n")
    if is_best:
        names.append("best")
    return f' class="{" ".join(names)}"' if names else ""


def _best_value(column: Column, cells: Sequence[Cell]) -> float | None:
    """Return the number of the column to highlight; None if its numbers do not differ."""
    values = [cell for cell in cells if isinstance(cell, int | float) and math.isfinite(cell)]
    if not column.best or len(set(values)) < 2:
        return None
    return max(values) if column.best == "max" else min(values)


@dataclass(frozen=True)
class CaptionedImage:
    """An image and its caption: ``name`` in bold, then ``caption``."""

    image: Image.Image
    name: str = ""
    caption: str = ""


def strips(rows: Sequence[Sequence[CaptionedImage]]) -> Html:
    """Return rows of images that are compared with each other.

    A row stays one row on every screen; a narrow screen scrolls. Several short rows may stand next
    to each other.
    """
    content = join(_strip(row) for row in rows)
    return Html(f'<div class="strips">\n{content}\n</div>')


def _strip(images: Sequence[CaptionedImage]) -> Html:
    content = join(_figure(image) for image in images)
    return Html(f'<div class="strip" style="--columns:{len(images)}">\n{content}\n</div>')


def gallery(images: Sequence[CaptionedImage]) -> Html:
    """Return independent images, as many in a row as fit."""
    content = join(_figure(image) for image in images)
    return Html(f'<div class="gallery">\n{content}\n</div>')


def wide(images: Sequence[CaptionedImage]) -> Html:
    """Return images that are each as wide as the page."""
    content = join(_figure(image) for image in images)
    return Html(f'<div class="wide">\n{content}\n</div>')


def swatches(entries: Sequence[tuple[str, str]]) -> Html:
    """Return a legend. An entry is a CSS colour and a name."""
    items = ""
    for colour, name in entries:
        items += f'<li><i style="background:{escape(colour)}"></i>{escape(name)}</li>'
    return Html(f'<ul class="legend">{items}</ul>')


def _figure(captioned: CaptionedImage) -> Html:
    alt = " ".join(part for part in (captioned.name, captioned.caption) if part)
    bold_name = f"<b>{escape(captioned.name)}</b> " if captioned.name else ""
    width, height = captioned.image.size
    address = data_uri(captioned.image)
    image = f'<img src="{address}" width="{width}" height="{height}" alt="{escape(alt)}">'
    caption = f"<figcaption>{bold_name}{escape(captioned.caption)}</figcaption>"
    return Html(f"<figure>{image}{caption}</figure>")


def data_uri(image: Image.Image) -> str:
    """Return the image as a data URI, encoded as JPEG.

    Colours have the full resolution (no subsampling), so that thin coloured lines stay clean.
    """
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=86, subsampling=0, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
