"""What groups are, in two paragraphs and two drawings."""

from __future__ import annotations

from collections.abc import Iterator

from groupdetr.report.page import Html, join, link, paragraph, section, text

PAPER = "https://arxiv.org/abs/2207.13085"

_RULE = (
    "A DETR looks for objects with a fixed set of learned queries, and in training every object is assigned to exactly "
    "one of them. That rule is why it needs no non-maximum suppression: a second query on the same object is told to "
    "stay silent. It is also why training is slow, for an object teaches one query at a time."
)
_GROUPS = (
    "keeps the rule and multiplies the lessons. K groups of queries pass through the same decoder; queries attend to "
    "each other only within their group; each group is matched with the objects one to one, and the loss is the mean "
    "over the groups. Every object now teaches K queries, while within each group duplicates are still discouraged. "
    "Afterwards one group is kept and the others are thrown away: the detector that is used has the size and the speed "
    "of a plain DETR."
)
_TRAINING = (
    "Training: each group finds its own one-to-one assignment to the three objects. "
    "An empty query learns to say that nothing is there."
)
_INFERENCE = "Inference: one group answers. The others only existed to train the network that it shares with them."

# Which query of a group is assigned to which shape.
_MATCHES = (
    {1: "circle", 2: "square", 4: "triangle"},
    {0: "square", 3: "triangle", 4: "circle"},
    {0: "triangle", 2: "circle", 4: "square"},
)
_SHAPES = {
    "circle": '<circle r="8" style="{style}"/>',
    "square": '<rect x="-7.5" y="-7.5" width="15" height="15" style="{style}"/>',
    "triangle": '<path d="M0 -9 L9 7 L-9 7 Z" style="{style}"/>',
}
_OBJECTS = (("circle", 36, 84), ("square", 66, 128), ("triangle", 38, 172))
_ROWS, _QUERIES, _WIDTH, _HEIGHT = (50, 130, 210), 5, 420, 246
_PICTURE = 'x="1" y="50" width="100" height="156" rx="8"'


def what_groups_are() -> Html:
    drawings = join([_figure(_training(), _TRAINING), _figure(_inference(), _INFERENCE)])
    second = paragraph(
        link("Group DETR", PAPER), text(" (Chen et al., arXiv 2207.13085) " + _GROUPS)
    )
    return section(
        "What groups are",
        paragraph(text(_RULE)),
        second,
        Html(f'<div class="charts">{drawings}</div>'),
    )


def _training() -> Iterator[Html]:
    yield from _picture(found=False)
    for row, y in enumerate(_ROWS):
        yield _wire(y, f"var(--s{row})")
        yield _group(row, y, dropped=False)


def _inference() -> Iterator[Html]:
    yield from _picture(found=True)
    yield _wire(_ROWS[0], "var(--s0)")
    for row, y in enumerate(_ROWS):
        yield _group(row, y, dropped=row > 0)


def _picture(found: bool) -> Iterator[Html]:
    """The image and its objects, with boxes once they are found."""
    yield Html(f'<rect {_PICTURE} style="fill:var(--raised);stroke:var(--rule)"/>')
    yield _text(1, 42, "image", "")
    for shape, x, y in _OBJECTS:
        yield _shape(shape, x, y, "fill:var(--ink)")
        if found:
            box = f'x="{x - 15}" y="{y - 15}" width="30" height="30"'
            yield Html(f'<rect {box} fill="none" style="stroke:var(--s0);stroke-width:2"/>')


def _wire(y: int, colour: str) -> Html:
    style = f"stroke:{colour};stroke-width:1.5;opacity:.7"
    return Html(f'<path d="M101 128 C 122 128, 118 {y}, 140 {y}" fill="none" style="{style}"/>')


def _group(row: int, y: int, dropped: bool) -> Html:
    """K's worth of one: a row of queries; an assigned one holds the shape of its object."""
    colour = "var(--muted)" if dropped else f"var(--s{row})"
    dashes = ";stroke-dasharray:4 5" if dropped else ""
    pill = f'<rect x="140" y="{y - 24}" width="278" height="48" rx="24" fill="none" style="stroke:{colour}{dashes}"/>'
    queries = [
        _query(167 + 56 * i, y, colour, "" if dropped else _MATCHES[row].get(i, ""))
        for i in range(_QUERIES)
    ]
    name = _text(
        154,
        y - 31,
        f"group {row + 1}" + ", dropped" * dropped,
        f'class="name" style="fill:{colour}"',
    )
    return Html(f'<g opacity="{0.5 if dropped else 1}">{pill}{name}{"".join(queries)}</g>')


def _query(x: int, y: int, colour: str, shape: str) -> Html:
    ring = (
        f'<circle cx="{x}" cy="{y}" r="16" fill="none" style="stroke:{colour};stroke-width:1.5"/>'
    )
    return Html(ring + (_shape(shape, x, y, f"fill:{colour}") if shape else ""))


def _shape(shape: str, x: int, y: int, style: str) -> Html:
    return Html(f'<g transform="translate({x} {y})">{_SHAPES[shape].format(style=style)}</g>')


def _text(x: int, y: int, words: str, attributes: str) -> Html:
    return Html(f'<text x="{x}" y="{y}" {attributes}>{text(words)}</text>')


def _figure(parts: Iterator[Html], caption: str) -> Html:
    svg = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{text(caption)}">\n{join(parts)}\n</svg>'
    return Html(f'<figure class="numbered">{svg}<figcaption>{text(caption)}</figcaption></figure>')
