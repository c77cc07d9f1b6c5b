"""The explanation of groups of queries on a report: two paragraphs and two drawings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from groupdetr.report.chart import numbered
from groupdetr.report.page import Html, escape, join, link, paragraph, section

PAPER = "https://arxiv.org/abs/2207.13085"

_ONE_TO_ONE = (
    "A DETR detects objects with a fixed set of learned queries. In training, every object is "
    "assigned to exactly one query. Because of this rule a DETR needs no non-maximum suppression: "
    "a second query on the same object is trained to predict that there is no object. The rule "
    "also makes training slow, because every object is a positive example for only one query."
)
_GROUPS = (
    "keeps this rule and applies it in each of K groups of queries. All groups pass through the "
    "same decoder. Queries attend only to queries of their own group, each group is matched to the "
    "objects one to one, and the loss is the mean over the groups. Every object is now a positive "
    "example for K queries, while duplicates within a group are still suppressed. After training, "
    "one group is kept and the others are removed. The final detector therefore has the size and "
    "the speed of a plain DETR."
)
_TRAINING_CAPTION = (
    "Training: each group finds its own one-to-one assignment to the three objects. "
    "A query without an object learns to predict that there is no object."
)
_INFERENCE_CAPTION = (
    "Inference: only one group is used. "
    "The others were needed only in training, for the network that all groups share."
)

# For each group: index of a query -> the shape that it is assigned to.
_ASSIGNMENTS = (
    {1: "circle", 2: "square", 4: "triangle"},
    {0: "square", 3: "triangle", 4: "circle"},
    {0: "triangle", 2: "circle", 4: "square"},
)
_SHAPES = {
    "circle": '<circle r="8" style="{style}"/>',
    "square": '<rect x="-7.5" y="-7.5" width="15" height="15" style="{style}"/>',
    "triangle": '<path d="M0 -9 L9 7 L-9 7 Z" style="{style}"/>',
}
_OBJECTS = (("circle", 36, 84), ("square", 66, 128), ("triangle", 38, 172))  # shape, x, y
_GROUP_Y = (50, 130, 210)
_NUM_QUERIES = 5
_WIDTH, _HEIGHT = 420, 246
_IMAGE = 'x="1" y="50" width="100" height="156" rx="8"'


def explain_groups() -> Html:
    """Return the section that explains groups."""
    training = _figure(_training(), _TRAINING_CAPTION)
    inference = _figure(_inference(), _INFERENCE_CAPTION)
    return section(
        "What groups are",
        paragraph(escape(_ONE_TO_ONE)),
        paragraph(link("Group DETR", PAPER), escape(" (Chen et al., arXiv 2207.13085) " + _GROUPS)),
        Html(f'<div class="charts">{join([training, inference])}</div>'),
    )


def _training() -> Iterator[Html]:
    """Yield the drawing of training: all groups are used, and each has its assignment."""
    yield from _image(with_boxes=False)
    for group, y in enumerate(_GROUP_Y):
        yield _connection(y, f"var(--s{group})")
        yield _group(group, y, dropped=False)


def _inference() -> Iterator[Html]:
    """Yield the drawing of inference: only the first group is used; the image shows its boxes."""
    yield from _image(with_boxes=True)
    yield _connection(_GROUP_Y[0], "var(--s0)")
    for group, y in enumerate(_GROUP_Y):
        yield _group(group, y, dropped=group > 0)


def _image(with_boxes: bool) -> Iterator[Html]:
    """Draw the image and its objects, and boxes around them if they are predicted."""
    yield Html(f'<rect {_IMAGE} style="fill:var(--raised);stroke:var(--rule)"/>')
    yield _text(1, 42, "image", "")
    for shape, x, y in _OBJECTS:
        yield _shape(shape, x, y, "fill:var(--ink)")
        if with_boxes:
            box = f'x="{x - 15}" y="{y - 15}" width="30" height="30"'
            yield Html(f'<rect {box} fill="none" style="stroke:var(--s0);stroke-width:2"/>')


def _connection(y: int, colour: str) -> Html:
    """Draw a line from the image to a group."""
    style = f"stroke:{colour};stroke-width:1.5;opacity:.7"
    return Html(f'<path d="M101 128 C 122 128, 118 {y}, 140 {y}" fill="none" style="{style}"/>')


def _group(group: int, y: int, dropped: bool) -> Html:
    """Draw a row of queries. A query that is assigned to an object contains its shape."""
    if dropped:
        colour = "var(--muted)"
        opacity = 0.5
        name = f"group {group}, dropped"
        frame_style = f"stroke:{colour};stroke-dasharray:4 5"
        assignment = {}
    else:
        colour = f"var(--s{group})"
        opacity = 1
        name = f"group {group}"
        frame_style = f"stroke:{colour}"
        assignment = _ASSIGNMENTS[group]
    frame_size = f'x="140" y="{y - 24}" width="278" height="48" rx="24"'
    frame = f'<rect {frame_size} fill="none" style="{frame_style}"/>'
    label = _text(154, y - 31, name, f'class="name" style="fill:{colour}"')
    queries = ""
    for index in range(_NUM_QUERIES):
        queries += _query(167 + 56 * index, y, colour, assignment.get(index))
    return Html(f'<g opacity="{opacity}">{frame}{label}{queries}</g>')


def _query(x: int, y: int, colour: str, shape: str | None) -> Html:
    style = f"stroke:{colour};stroke-width:1.5"
    circle = f'<circle cx="{x}" cy="{y}" r="16" fill="none" style="{style}"/>'
    content = _shape(shape, x, y, f"fill:{colour}") if shape else ""
    return Html(circle + content)


def _shape(shape: str, x: int, y: int, style: str) -> Html:
    return Html(f'<g transform="translate({x} {y})">{_SHAPES[shape].format(style=style)}</g>')


def _text(x: int, y: int, content: str, attributes: str) -> Html:
    return Html(f'<text x="{x}" y="{y}" {attributes}>{escape(content)}</text>')


def _figure(parts: Iterable[Html], caption: str) -> Html:
    attributes = f'viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(caption)}"'
    return numbered(Html(f"<svg {attributes}>\n{join(parts)}\n</svg>"), caption)
