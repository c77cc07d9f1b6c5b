"""Drawing of detections on an image: masks, boxes, labels and the queries of every group.

Only Pillow is used.
"""

from __future__ import annotations

import colorsys
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from groupdetr.structures.detections import Detections, decode_mask, mask_areas
from groupdetr.structures.rle import RLE
from groupdetr.visualize.fonts import default_font, font_and_text, text_width

Colour = tuple[int, int, int]

# The colours of Okabe & Ito (2008) can be distinguished with every kind of colour vision. Their
# black is left out because outlines are black. Three colours that are darker than all of them
# follow: wine and indigo of Tol's (2021) muted colours, and olive.
_DISTINCT_COLOURS: tuple[Colour, ...] = (
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (213, 94, 0),
    (86, 180, 233),
    (240, 228, 66),
    (136, 34, 85),
    (51, 34, 136),
    (112, 108, 20),
)
# A step in hue, as a fraction of the colour circle. Steps of this size give consecutive classes
# very different hues, and no hue is repeated.
_GOLDEN_ANGLE = 0.381966
_LIGHTNESSES = (0.42, 0.70, 0.56)
INK: Colour = (16, 18, 22)
PAPER: Colour = (255, 255, 255)
_MASK_OPACITY = 0.45
# Labels cover at most this part of an image, the best ones first. If there are many, they are
# smaller, but still readable.
_MAX_LABEL_SHARE = 0.15
MIN_FONT_SIZE = 9  # pixels
_MAX_HIDDEN = 0.4  # the part of a box that a label may hide
# The outline of a box takes at most this part of its shorter side.
_MAX_OUTLINE_SHARE = 0.1


def palette(index: int) -> Colour:
    """Return the colour of a class or of a group.

    The first ten colours are easy to distinguish. There is no last colour, but later ones are more
    similar.
    """
    if index < len(_DISTINCT_COLOURS):
        return _DISTINCT_COLOURS[index]
    lightness = _LIGHTNESSES[index % 3]
    r, g, b = colorsys.hls_to_rgb(index * _GOLDEN_ANGLE % 1, lightness, 0.75)
    return round(255 * r), round(255 * g), round(255 * b)


def scale_for(image: Image.Image, side: int = 560) -> int:
    """Return the integer scale at which the longer side of a small image is about ``side`` pixels.

    It is 1 for large images.
    """
    return max(1, round(side / max(image.size)))


def draw_detections(
    image: Image.Image, detections: Detections, captions: Sequence[str], scale: int = 1
) -> Image.Image:
    """Return a copy of ``image``, ``scale`` times as large, with the detections drawn on it.

    Every detection has a box in the colour of its class, and one of the captions [D] if there is
    room for it. Masks have colours of their own, which tell neighbours of one class apart.
    """
    colours = [palette(int(label)) for label in detections.labels]
    return draw_boxes(
        image,
        detections.boxes,
        captions,
        colours,
        scale,
        masks=detections.masks or (),
        mask_colours=instance_colours(detections.boxes) if detections.masks else (),
    )


def instance_colours(boxes: ArrayLike) -> list[Colour]:
    """Return a colour for each of the boxes [D,4] such that neighbours have different ones.

    Each box takes the colour whose nearest box is farthest away.
    """
    corners = np.nan_to_num(np.asarray(boxes, dtype=float).reshape(-1, 4))
    chosen = np.empty(0, dtype=int)
    for number, box in enumerate(corners):
        former = corners[:number]
        # The distance between the edges of two boxes along x and along y.
        gaps = np.maximum(former[:, :2] - box[2:], box[:2] - former[:, 2:]).clip(min=0)
        distances = np.hypot(gaps[:, 0], gaps[:, 1])
        nearest = np.full(len(_DISTINCT_COLOURS), np.inf)
        np.minimum.at(nearest, chosen, distances)
        # Of equal colours, the one that the fewest boxes have.
        counts = np.bincount(chosen, minlength=len(_DISTINCT_COLOURS))
        chosen = np.append(chosen, np.lexsort((counts, -nearest))[0])
    return [_DISTINCT_COLOURS[index] for index in chosen]


def draw_boxes(
    image: Image.Image,
    boxes: ArrayLike,
    captions: Sequence[str],
    colours: Sequence[Colour],
    scale: int = 1,
    masks: Sequence[RLE] = (),
    mask_colours: Sequence[Colour] = (),
) -> Image.Image:
    """Return a copy of ``image``, ``scale`` times as large, with boxes, labels and masks.

    ``boxes`` [D,4] are x0,y0,x1,y1 in pixels of ``image``, sorted by decreasing score. Boxes that
    reach outside of the image are drawn along its edge, and boxes that are not finite are left out.
    An empty caption draws no label. In a crowded image, only the best boxes have labels. ``masks``
    [D], if there are any, lie under the boxes, small masks on top of large ones. They have the
    ``mask_colours`` [D], or those of the boxes.
    """
    drawing = DrawingCanvas(image, scale)
    largest_first = np.argsort(-mask_areas(masks), kind="stable")
    for index in largest_first:
        drawing.draw_mask(decode_mask(masks[index]), (mask_colours or colours)[index])
    visible = []
    for box, caption, colour in zip(drawing.scaled(boxes, 4), captions, colours, strict=True):
        if np.isfinite(box).all():
            visible.append((box, caption, colour))
    # Boxes around masks are thinner, because the mask is the result.
    width = max(1, drawing.line_width // 2) if masks else drawing.line_width
    # Boxes are drawn by rising score, so that the best one lies on top.
    for box, _, colour in reversed(visible):
        drawing.draw_box(box, colour, width)
    drawing.draw_labels(visible)
    return drawing.image


def draw_groups(
    image: Image.Image,
    object_boxes: ArrayLike,
    group_boxes: ArrayLike,
    group_points: ArrayLike,
    scale: int = 4,
) -> Image.Image:
    """Draw the boxes and reference points of the K queries matched to each of T objects.

    This is Fig. 3 of the paper. ``object_boxes`` [T,4] and ``group_boxes`` [T,K,4] are
    x0,y0,x1,y1 and ``group_points`` [T,K,2] are x,y, all in pixels of ``image``. Groups whose
    values are nan are left out. Objects are white, and each group has its `palette` colour.
    """
    drawing = DrawingCanvas(image, scale)
    boxes = np.asarray(group_boxes, dtype=float)
    points = np.asarray(group_points, dtype=float)
    for box in drawing.scaled(object_boxes, 4):
        drawing.draw_box(box, PAPER, 2 * drawing.line_width)
    for group in range(boxes.shape[1]):
        for box in drawing.scaled(boxes[:, group], 4):
            drawing.draw_box(box, palette(group), drawing.line_width, edge=0)
    for group in range(points.shape[1]):
        for point in drawing.scaled(points[:, group], 2):
            drawing.draw_point(point, palette(group))
    return drawing.image


def draw_group_boxes(
    image: Image.Image,
    boxes: ArrayLike,
    captions: Sequence[str],
    group_boxes: ArrayLike,
    scale: int = 1,
) -> Image.Image:
    """Draw the boxes of K groups for each of D detections, and a legend below the image.

    ``boxes`` [D,4], to which the ``captions`` belong, and ``group_boxes`` [D,K,4] are x0,y0,x1,y1
    in pixels of ``image``. Each group has its `palette` colour, and groups whose values are nan are
    left out. The first group lies on top.
    """
    drawing = DrawingCanvas(image, scale)
    boxes_of_groups = np.asarray(group_boxes, dtype=float)
    width = max(1, drawing.line_width // 2)  # thin, because the boxes of one object are close
    num_groups = boxes_of_groups.shape[1]
    for group in reversed(range(num_groups)):
        for box in drawing.scaled(boxes_of_groups[:, group], 4):
            drawing.draw_box(box, palette(group), width, edge=0)
    labels = [(box, caption, INK) for box, caption in zip(drawing.scaled(boxes, 4), captions)]
    drawing.draw_labels(labels)
    return _with_legend(drawing, [(f"group {k}", palette(k)) for k in range(num_groups)])


def _with_legend(drawing: DrawingCanvas, entries: Sequence[tuple[str, Colour]]) -> Image.Image:
    """Return the image with the names of colours below it, in as many rows as they need."""
    size = max(drawing.min_font_size, round(0.8 * drawing.font_size))
    font = default_font(size)
    row_height = 2 * size
    positions = []
    x = y = 0
    for name, _ in entries:
        # A square of the colour, the name, and space on both sides
        width = round(2.5 * size + text_width(font, name))
        if x and x + width > drawing.image.width:
            x, y = 0, y + row_height
        positions.append((x, y))
        x += width
    height = drawing.image.height
    extended = Image.new("RGB", (drawing.image.width, height + y + row_height), PAPER)
    extended.paste(drawing.image)
    pen = ImageDraw.Draw(extended)
    for (x, y), (name, colour) in zip(positions, entries):
        left, top = x + size // 2, height + y + size // 2
        pen.rectangle((left, top, left + size, top + size), fill=colour)
        middle = (left + round(1.5 * size), top + size / 2)
        pen.text(middle, name, fill=INK, font=font, anchor="lm")
    return extended


class Rectangle(NamedTuple):
    """A rectangle in pixels of the drawing."""

    x0: float
    y0: float
    x1: float
    y1: float

    @property
    def area(self) -> float:
        return (self.x1 - self.x0) * (self.y1 - self.y0)

    def overlaps(self, other: Rectangle) -> bool:
        overlaps_in_x = self.x0 < other.x1 and other.x0 < self.x1
        overlaps_in_y = self.y0 < other.y1 and other.y0 < self.y1
        return overlaps_in_x and overlaps_in_y


class DrawingCanvas:
    """An enlarged copy of an image, with functions that draw on it.

    The widths of lines and the size of the font depend on the size of the image.
    ``min_font_size`` is the size of the labels of a crowded image.
    """

    def __init__(self, image: Image.Image, scale: int, min_font_size: int = MIN_FONT_SIZE) -> None:
        width, height = image.width * scale, image.height * scale
        rgb = image if image.mode == "RGB" else image.convert("RGB")
        self.image = rgb.resize((width, height), Image.Resampling.BICUBIC)  # always a copy
        self.scale = scale
        self.pen = ImageDraw.Draw(self.image)
        # The font grows with the image, but more slowly than its side.
        font_size = max(11, round(0.22 * (width * height) ** 0.35))
        self.line_width = max(1, round(font_size / 5))
        self.font = default_font(font_size)
        self.font_size = font_size
        self.min_font_size = min(min_font_size, font_size)

    def scaled(self, coordinates: ArrayLike, width: int) -> NDArray[np.float64]:
        """Convert pixels of the original image to pixels of the canvas, [D,width].

        ``coordinates`` may be a tensor.
        """
        return np.asarray(coordinates, dtype=float).reshape(-1, width) * self.scale

    def draw_box(self, box: NDArray[np.float64], colour: Colour, width: int, edge: int = 1) -> None:
        """Draw an outline.

        A dark edge of ``edge`` pixels on both sides makes it visible on any background. A small box
        has a thinner outline, which does not fill it.
        """
        if not np.isfinite(box).all():
            return
        x0, y0, x1, y1 = self._clip(box)
        thickness = max(1, round(_MAX_OUTLINE_SHARE * min(x1 - x0, y1 - y0)))
        if width + 2 * edge > thickness:
            edge = 1 if edge and thickness > 2 else 0
            width = max(1, min(width, thickness - 2 * edge))
        self.pen.rectangle((x0, y0, x1, y1), outline=INK, width=width + 2 * edge)
        if min(x1 - x0, y1 - y0) >= 2 * edge:
            inner = (x0 + edge, y0 + edge, x1 - edge, y1 - edge)
            self.pen.rectangle(inner, outline=colour, width=width)

    def draw_mask(self, mask: NDArray[np.bool_], colour: Colour) -> None:
        """Fill a mask [H,W] of the original image with a translucent colour.

        A thin opaque outline runs along the inside of the mask's border.
        """
        mask_image = Image.fromarray(mask.astype(np.uint8) * 255)
        bounds = mask_image.getbbox()
        if not bounds:
            return
        # Only the region around the mask is enlarged. A margin of one pixel adds the outside of the
        # mask, which the smoothing needs.
        left, top = bounds[0] - 1, bounds[1] - 1
        region = mask_image.crop((left, top, bounds[2] + 1, bounds[3] + 1))
        size = (region.width * self.scale, region.height * self.scale)
        smooth = region.resize(size, Image.Resampling.BILINEAR)
        shape = smooth.point(lambda value: 255 * (value > 127))
        # A blurred pixel is still 255 if and only if it is farther inside than the radius.
        blurred = shape.filter(ImageFilter.BoxBlur(max(1, self.line_width // 2)))
        inner = blurred.point(lambda value: 255 * (value == 255))
        outline = ImageChops.subtract(shape, inner)
        corner = (left * self.scale, top * self.scale)
        self.image.paste(colour, corner, inner.point(lambda value: round(_MASK_OPACITY * value)))
        self.image.paste(colour, corner, outline)

    def draw_point(self, point: NDArray[np.float64], colour: Colour) -> None:
        """Draw a disc at ``point`` [2] with a white and a dark rim. Skip it if it is not finite."""
        if not np.isfinite(point).all():
            return
        x, y = np.clip(point, 0, np.array(self.image.size) - 1)
        radius = 1.6 * self.line_width + 1
        for rim, fill in ((2, INK), (1, PAPER), (0, colour)):
            r = radius + rim
            self.pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)

    def draw_labels(
        self,
        entries: Sequence[tuple[NDArray[np.float64], str, Colour]],
        occupied: Sequence[Rectangle] = (),
    ) -> None:
        """Draw the labels of boxes: entries (box, caption, colour), the most important first.

        A label lies at a corner of its box, inside of the image. It covers no other label, nothing
        ``occupied``, and as little of other boxes as possible. All labels together cover a small
        part of the image: if there are many, they are smaller, and the last ones are left out.
        """
        entries = [entry for entry in entries if entry[1]]
        if not entries:
            return
        boxes = np.array([self._clip(box) for box, _, _ in entries], dtype=float)
        budget = _MAX_LABEL_SHARE * self.image.width * self.image.height
        total = sum(self._label(caption).area for _, caption, _ in entries)
        is_crowded = total > budget
        if is_crowded:
            size = round(self.font_size * (budget / total) ** 0.5)
            self.font_size = max(size, self.min_font_size)
        taken = list(occupied)
        remaining = budget
        for index, (box, caption, colour) in enumerate(entries):
            label = self._best_position(box, caption, taken, boxes, index, is_crowded)
            if label is None:
                continue
            # The first label may be larger, so that no image is without any.
            if label.area > remaining and index > 0:
                break
            remaining -= label.area
            taken.append(label)
            self._draw_label(label, caption, colour)

    def draw_corner_label(self, caption: str, colour: Colour) -> Rectangle:
        """Draw a label in the upper left corner of the image, and return its rectangle."""
        label = self._label(caption)
        self._draw_label(label, caption, colour)
        return label

    @property
    def _label_margin(self) -> int:
        """The pixels at both sides of the text of a label."""
        return max(2, round(0.3 * self.font_size))

    def _label(self, caption: str) -> Rectangle:
        """Return the rectangle of a label in the upper left corner of the image."""
        font, text = self._label_text(caption)
        margin = self._label_margin
        width = min(text_width(font, text) + 2 * margin, self.image.width)
        height = min(sum(font.getmetrics()) + margin, self.image.height)
        return Rectangle(0, 0, width, height)

    def _label_text(self, caption: str) -> tuple[ImageFont.FreeTypeFont, str]:
        """Return the font of a caption, and its text, which is not wider than the image."""
        font, text = font_and_text(caption, self.font_size)
        width = self.image.width - 2 * self._label_margin

        def is_too_long(letters: int) -> bool:
            return text_width(font, text[:letters] + "...") > width

        if text_width(font, text) <= width:
            return font, text
        # As many letters as fit, at least one
        letters = 1 + bisect_left(range(2, len(text)), True, key=is_too_long)
        return font, text[:letters] + "..."

    def _draw_label(self, label: Rectangle, caption: str, colour: Colour) -> None:
        """Draw a label on a background of ``colour``."""
        font, text = self._label_text(caption)
        self.pen.rectangle(label, fill=colour)
        left_middle = (label.x0 + self._label_margin, (label.y0 + label.y1) / 2)
        self.pen.text(left_middle, text, fill=_text_colour(colour), font=font, anchor="lm")

    def _best_position(
        self,
        box: NDArray[np.float64],
        caption: str,
        taken: Sequence[Rectangle],
        boxes: NDArray[np.float64],
        index: int,
        is_crowded: bool,
    ) -> Rectangle | None:
        """Return the rectangle of a label that covers the least of all ``boxes`` [D,4].

        ``box`` is the one with this index. None if every position overlaps a rectangle of
        ``taken``, or, in a crowded image, hides another box.
        """
        size = self._label(caption)
        labels = [
            label
            for label in self._label_positions(box, size.x1, size.y1)
            if not any(label.overlaps(other) for other in taken)
        ]
        overlaps = _overlap_areas(labels, boxes)  # [P,D]
        sides = (boxes[:, 2:] - boxes[:, :2]).clip(min=1)
        hidden = overlaps / (sides[:, 0] * sides[:, 1])  # the part of each box
        own_hidden = hidden[:, index].copy()  # [P]
        overlaps[:, index] = hidden[:, index] = 0
        # A label may lie in its own box, but should not hide it.
        covered = overlaps.sum(1) / size.area
        covered += np.where(own_hidden > _MAX_HIDDEN, own_hidden, 0)
        hides_a_box = np.maximum(own_hidden, hidden.max(1)) > _MAX_HIDDEN
        best, best_covered = None, np.inf
        for position, label in enumerate(labels):
            if is_crowded and hides_a_box[position]:
                continue
            if covered[position] < best_covered - 0.1:  # a little is no reason for a worse corner
                best, best_covered = label, covered[position]
        return best

    def _label_positions(
        self, box: NDArray[np.float64], width: float, height: float
    ) -> list[Rectangle]:
        """Return possible rectangles of a label, best first.

        The order is: above the box, inside at the top, below, inside at the bottom, all at the
        left side of the box and then at the right one. Positions that had to move up or down to
        lie inside of the image come last.
        """
        x0, y0, x1, y1 = self._clip(box)
        unmoved: list[Rectangle] = []
        moved: list[Rectangle] = []
        for x in (x0, x1 - width):
            for y in (y0 - height, y0, y1, y1 - height):
                inside_x = min(max(x, 0), self.image.width - width)
                inside_y = min(max(y, 0), self.image.height - height)
                label = Rectangle(inside_x, inside_y, inside_x + width, inside_y + height)
                if inside_y == y:
                    unmoved.append(label)
                else:
                    moved.append(label)
        return unmoved + moved

    def _clip(self, box: NDArray[np.float64]) -> tuple[int, int, int, int]:
        """Return the box inside of the canvas, in whole pixels, with x0 <= x1 and y0 <= y1."""
        width, height = self.image.size
        left, top, right, bottom = box.tolist()
        x0, x1 = sorted(round(min(max(x, 0.0), width - 1)) for x in (left, right))
        y0, y1 = sorted(round(min(max(y, 0.0), height - 1)) for y in (top, bottom))
        return x0, y0, x1, y1


def _overlap_areas(labels: Sequence[Rectangle], boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the area of each of the boxes [D,4] that each of P labels covers: [P,D]."""
    corners = np.array(labels, dtype=float).reshape(-1, 1, 4)
    low = np.maximum(boxes[:, :2], corners[..., :2])
    high = np.minimum(boxes[:, 2:], corners[..., 2:])
    sides = (high - low).clip(min=0)
    areas: NDArray[np.float64] = sides[..., 0] * sides[..., 1]
    return areas


def _text_colour(background: Colour) -> Colour:
    """Return dark or white, by the relative luminance of the background (WCAG 2)."""
    linear = []
    for channel in background:
        if channel <= 10:
            linear.append(channel / 255 / 12.92)
        else:
            linear.append(((channel / 255 + 0.055) / 1.055) ** 2.4)
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return INK if luminance > 0.18 else PAPER
