"""Pictures with what was found in them: masks, boxes, label chips, and the queries of every group. Pillow only."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from groupdetr.structures.detections import Detections, Runs, areas, decoded

Colour = tuple[int, int, int]

# Okabe & Ito (2008), told apart with every kind of colour vision; their black is left out, it is our outline. Then
# three that are darker than all of them: wine and indigo of Tol's (2021) muted colours, and olive.
_TOLD_APART: tuple[Colour, ...] = (
    *((0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167)),
    *((213, 94, 0), (86, 180, 233), (240, 228, 66)),
    *((136, 34, 85), (51, 34, 136), (112, 108, 20)),
)
_GOLDEN_ANGLE = (
    0.381966  # of the circle of hues: consecutive classes are far apart, and no hue comes back
)
INK: Colour = (16, 18, 22)
PAPER: Colour = (255, 255, 255)
_VEIL = 0.45  # of a mask's ground is its colour


def palette(index: int) -> Colour:
    """The colour of a class or a group: ten that can be told apart, then hues without end, which get closer."""
    if index < len(_TOLD_APART):
        return _TOLD_APART[index]
    lightness = (0.42, 0.70, 0.56)[index % 3]
    r, g, b = colorsys.hls_to_rgb(index * _GOLDEN_ANGLE % 1, lightness, 0.75)
    return round(255 * r), round(255 * g), round(255 * b)


def scale_for(image: Image.Image, side: int = 560) -> int:
    """By how much to enlarge a small picture so that its longer side is about ``side`` pixels; large ones stay."""
    return max(1, round(side / max(image.size)))


def draw_found(
    image: Image.Image, found: Detections, captions: Sequence[str], scale: int = 1
) -> Image.Image:
    """A copy of ``image``, ``scale`` times as large, with what was found in it, in the colours of the classes."""
    colours = [palette(int(label)) for label in found.labels]
    return draw_detections(image, found.boxes, captions, colours, scale, found.masks or ())


def draw_detections(
    image: Image.Image,
    boxes: ArrayLike,
    captions: Sequence[str],
    colours: Sequence[Colour],
    scale: int = 1,
    masks: Sequence[Runs] = (),
) -> Image.Image:
    """A copy of ``image``, ``scale`` times as large, with ``boxes`` [D,4] x0,y0,x1,y1 in its pixels, best first.

    Under them lie ``masks`` [D], if there are any, small ones on large ones. An empty caption draws no chip. Boxes
    outside the picture are drawn along its edge, those not finite left out.
    """
    canvas = Canvas(image, scale)
    for place in np.argsort(-areas(masks), kind="stable"):
        canvas.mask(decoded(masks[place]), colours[place])
    visible = [
        row
        for row in zip(canvas.scaled(boxes, 4), captions, colours, strict=True)
        if np.isfinite(row[0]).all()
    ]
    width = (
        max(1, canvas.line // 2) if masks else canvas.line
    )  # thinner where it is not the box that counts
    for box, _, colour in reversed(visible):  # the best on top
        canvas.box(box, colour, width)
    taken: list[Rectangle] = []
    for box, caption, colour in visible:
        if caption:
            taken.append(canvas.chip(box, caption, colour, taken))
    return canvas.image


def draw_groups(
    image: Image.Image,
    object_boxes: ArrayLike,
    group_boxes: ArrayLike,
    group_points: ArrayLike,
    scale: int = 4,
) -> Image.Image:
    """Fig. 3 of the paper: for T objects, the boxes and reference points of the K queries matched to them.

    ``object_boxes`` [T,4] and ``group_boxes`` [T,K,4] are x0,y0,x1,y1, ``group_points`` [T,K,2] x,y, all in pixels of
    ``image``; nan leaves a group out. Objects are white, and each group has its ``palette`` colour.
    """
    canvas = Canvas(image, scale)
    boxes, points = (np.asarray(x, dtype=float) for x in (group_boxes, group_points))
    for box in canvas.scaled(object_boxes, 4):
        canvas.box(box, PAPER, 2 * canvas.line)
    for group in range(boxes.shape[1]):
        for box in canvas.scaled(boxes[:, group], 4):
            canvas.box(box, palette(group), canvas.line, edge=0)
    for group in range(points.shape[1]):
        for point in canvas.scaled(points[:, group], 2):
            canvas.dot(point, palette(group))
    return canvas.image


class Rectangle(NamedTuple):
    x0: float
    y0: float
    x1: float
    y1: float

    def overlaps(self, other: Rectangle) -> bool:
        return (
            self.x0 < other.x1 and other.x0 < self.x1 and self.y0 < other.y1 and other.y0 < self.y1
        )


class Canvas:
    """An enlarged copy of a picture, and pens whose width suits its size."""

    def __init__(self, image: Image.Image, scale: int) -> None:
        size = (image.width * scale, image.height * scale)
        self.image = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
        self.scale = scale
        self.pen = ImageDraw.Draw(self.image)
        letters = max(
            11, round(0.22 * (size[0] * size[1]) ** 0.35)
        )  # larger pictures, larger pens, but not as much
        self.line = max(1, round(letters / 5))
        self.font = ImageFont.load_default(size=letters)

    def scaled(self, coordinates: ArrayLike, width: int) -> np.ndarray:
        """Pixels of the original to pixels of the canvas, [...,width]; tensors welcome."""
        return np.asarray(coordinates, dtype=float).reshape(-1, width) * self.scale

    def box(self, box: np.ndarray, colour: Colour, width: int, edge: int = 1) -> None:
        """An outline; with a dark edge on both sides it shows on any ground."""
        if not np.isfinite(box).all():
            return
        x0, y0, x1, y1 = self._inside(box)
        self.pen.rectangle((x0, y0, x1, y1), outline=INK, width=width + 2 * edge)
        if min(x1 - x0, y1 - y0) >= 2 * edge:
            self.pen.rectangle(
                (x0 + edge, y0 + edge, x1 - edge, y1 - edge), outline=colour, width=width
            )

    def mask(self, mask: np.ndarray, colour: Colour) -> None:
        """A translucent ground [H,W] in pixels of the original, with a thin outline inside of it."""
        whole = Image.fromarray(mask.astype(np.uint8) * 255)
        if not (window := whole.getbbox()):
            return
        left, top = window[0] - 1, window[1] - 1
        cut = whole.crop((left, top, window[2] + 1, window[3] + 1))
        smooth = cut.resize(
            (cut.width * self.scale, cut.height * self.scale), Image.Resampling.BILINEAR
        )
        shape = smooth.point(lambda value: 255 * (value > 127))
        inner = shape.filter(ImageFilter.BoxBlur(max(1, self.line // 2))).point(
            lambda value: 255 * (value == 255)
        )
        outline = ImageChops.subtract(shape, inner)
        corner = left * self.scale, top * self.scale
        self.image.paste(colour, corner, inner.point(lambda value: round(_VEIL * value)))
        self.image.paste(colour, corner, outline)

    def dot(self, point: np.ndarray, colour: Colour) -> None:
        if not np.isfinite(point).all():
            return
        x, y = np.clip(point, 0, np.array(self.image.size) - 1)
        radius = 1.6 * self.line + 1
        self.pen.ellipse((x - radius - 2, y - radius - 2, x + radius + 2, y + radius + 2), fill=INK)
        self.pen.ellipse(
            (x - radius - 1, y - radius - 1, x + radius + 1, y + radius + 1), fill=PAPER
        )
        self.pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)

    def chip(
        self, box: np.ndarray, caption: str, colour: Colour, taken: Sequence[Rectangle]
    ) -> Rectangle:
        """A label on its own ground at a free corner of the box, within the picture."""
        margin = max(3, round(1.5 * self.line))
        caption = self._shortened(caption, self.image.width - 2 * margin)
        width = min(self.pen.textlength(caption, font=self.font) + 2 * margin, self.image.width)
        ascent, descent = self.font.getmetrics()  # type: ignore[union-attr]
        places = self._places(box, width, min(ascent + descent + margin, self.image.height))
        place = next(
            (p for p in places if not any(p.overlaps(other) for other in taken)), places[0]
        )
        self.pen.rectangle(place, fill=colour)
        middle = (place.x0 + margin, (place.y0 + place.y1) / 2)
        self.pen.text(middle, caption, fill=_readable_on(colour), font=self.font, anchor="lm")
        return place

    def _places(self, box: np.ndarray, width: float, height: float) -> list[Rectangle]:
        """Where a chip may go, best first: above, inside at the top, below, inside at the bottom; left, then right."""
        x0, y0, x1, y1 = self._inside(box)
        corners = [(x, y) for x in (x0, x1 - width) for y in (y0 - height, y0, y1, y1 - height)]
        clipped = [
            (min(max(x, 0), self.image.width - width), min(max(y, 0), self.image.height - height))
            for x, y in corners
        ]
        ordered = sorted(range(len(corners)), key=lambda i: abs(corners[i][1] - clipped[i][1]) > 0)
        return [Rectangle(x, y, x + width, y + height) for x, y in (clipped[i] for i in ordered)]

    def _shortened(self, caption: str, width: float) -> str:
        """One line that fits."""
        caption = " ".join(caption.split())
        while len(caption) > 1 and self.pen.textlength(caption, font=self.font) > width:
            caption = caption[:-2] + "…"
        return caption

    def _inside(self, box: np.ndarray) -> tuple[int, int, int, int]:
        """Whole pixels of the canvas, corners in order."""
        width, height = self.image.size
        x0, x1 = sorted(round(float(x)) for x in np.clip(box[[0, 2]], 0, width - 1))
        y0, y1 = sorted(round(float(y)) for y in np.clip(box[[1, 3]], 0, height - 1))
        return x0, y0, x1, y1


def _readable_on(colour: Colour) -> Colour:
    """Dark or white text, by the ground's relative luminance (WCAG 2)."""
    linear = [(c / 255 / 12.92) if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return INK if luminance > 0.18 else PAPER
