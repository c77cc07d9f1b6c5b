"""A scene with what was found in it, in three dimensions: six cameras, and a view from above. Pillow only.

Boxes are x, y, z, width, length, height, yaw, vx, vy in the lidar frame (x right, y ahead, z up; metres, radians), as
detectors say them. What is found has the colours of the classes, what is there is white.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

from groupdetr.visualize.images import INK, PAPER, Canvas, Colour, palette

CAMERAS = (
    "front",
    "front right",
    "front left",
    "back",
    "back left",
    "back right",
)  # in which order pictures come
_LAYOUT = ((2, 0, 1), (4, 3, 5))  # where they are shown
_NEAR = 0.2  # metres before a camera: what is nearer is cut away
_FINE = 2  # drawn larger and then reduced: lines have smooth edges
_GAP = 8  # pixels between the pictures
_RINGS = range(10, 60, 10)  # metres
_SIGHT = 54.0  # metres from the middle of the view from above to its edges
_VEHICLE = (1.9, 4.6)  # metres, width and length of the one that carries the cameras
_NIGHT: Colour = (27, 30, 36)
_GRID: Colour = (70, 76, 88)
_PALE: Colour = (176, 182, 192)
_VEIL = 84  # of 255 is the colour of a face that is filled
_TRUTH = 3  # pixels, the lines around what is there
_SLOW = 0.5  # m/s: slower ones get no arrow

# Corners of a box, in lengths, widths and heights from its centre: the front face, then the back, each all around.
_CORNERS = np.array(
    [
        [x, y, z]
        for x in (0.5, -0.5)
        for y, z in ((0.5, 0.5), (-0.5, 0.5), (-0.5, -0.5), (0.5, -0.5))
    ]
)
_FRONT = [0, 1, 2, 3]
_EDGES = [(f + i, f + (i + 1) % 4) for f in (0, 4) for i in range(4)] + [
    (i, i + 4) for i in range(4)
]
_TOP = [0, 1, 5, 4]  # from the left of the front to the left of the back


@dataclass(frozen=True)
class Solids:
    """D boxes of a scene; those that are not finite are left out, but for unknown velocities."""

    boxes: ArrayLike  # [D,9]
    labels: ArrayLike = ()  # [D] indices of classes; without them all are white
    captions: Sequence[str] = ()  # [D], or none; best first

    @property
    def rows(self) -> NDArray[np.float64]:
        """[D,9] as an array; tensors welcome."""
        return np.asarray(self.boxes, dtype=np.float64).reshape(-1, 9)

    @property
    def colours(self) -> list[Colour]:
        labels = [int(label) for label in np.asarray(self.labels).reshape(-1)]
        return [palette(label) for label in labels] if labels else [PAPER] * len(self.rows)

    def finite(self) -> Solids:
        kept = np.asarray(np.isfinite(self.rows[:, :7]).all(axis=1))
        labels = np.asarray(self.labels).reshape(-1)
        captions = [caption for caption, good in zip(self.captions, kept) if good]
        return Solids(self.rows[kept], labels[kept] if len(labels) else (), captions)

    def corners(self) -> NDArray[np.float64]:
        """[D,8,3] in the order of _CORNERS."""
        rows = self.rows
        along, across, up = ((_CORNERS * rows[:, None, [4, 3, 5]])[..., axis] for axis in range(3))
        c, s = np.cos(rows[:, 6:7]), np.sin(rows[:, 6:7])
        return rows[:, None, :3] + np.stack(
            [along * c - across * s, along * s + across * c, up], axis=-1
        )


_NOTHING = Solids(())


def draw_scene(
    pictures: Sequence[Image.Image],
    lidar_to_image: ArrayLike,
    found: Solids,
    truth: Solids = _NOTHING,
    names: Sequence[str] = (),
    width: int = 640,
) -> Image.Image:
    """Six ``pictures`` in the order of CAMERAS, each ``width`` pixels wide, and the scene from above beside them.

    ``lidar_to_image`` [6,4,4] gives (u d, v d, d, 1) for (x, y, z, 1), u and v in pixels of the pictures as they come
    and d in metres before the camera. ``names`` of classes make a legend.
    """
    views = draw_cameras(pictures, lidar_to_image, found, truth, width)
    above = draw_from_above(found, truth, names, views.height)
    return _laid_out([[views, above]])


def draw_cameras(
    pictures: Sequence[Image.Image],
    lidar_to_image: ArrayLike,
    found: Solids,
    truth: Solids = _NOTHING,
    width: int = 640,
) -> Image.Image:
    """The pictures alone, in two rows: front left, front, front right; back left, back, back right."""
    matrices = np.asarray(lidar_to_image, dtype=np.float64)
    views = [
        _view(picture, matrix, name, (found.finite(), truth.finite()), width)
        for picture, matrix, name in zip(pictures, matrices, CAMERAS, strict=True)
    ]
    return _laid_out([[views[place] for place in row] for row in _LAYOUT])


def draw_from_above(
    found: Solids, truth: Solids = _NOTHING, names: Sequence[str] = (), side: int = 720
) -> Image.Image:
    """``side`` pixels high, and wider by its legend; ahead is up.

    Boxes have a thick front, and arrows show where they are in a second.
    """
    plan = _Plan(side * _FINE)
    plan.ground()
    found, truth = found.finite(), truth.finite()
    plan.outlines(truth)
    plan.boxes(found)
    labels = sorted({int(label) for label in np.asarray(found.labels).reshape(-1)})
    entries = [(names[label], palette(label)) for label in labels] if names else []
    return _reduced(plan.with_legend(entries + [("what is there", PAPER)] * (len(truth.rows) > 0)))


def draw_groups_from_above(
    objects: ArrayLike, said: ArrayLike, points: ArrayLike, side: int = 480
) -> Image.Image:
    """What the queries of K groups say of the same objects: ``objects`` [T,9] in white, ``said`` [T,K,9] in the
    group's colour, and where each query looks, ``points`` [T,K,3]. nan where there is no such query."""
    boxes, dots = np.asarray(said, dtype=np.float64), np.asarray(points, dtype=np.float64)
    truth = Solids(objects).finite()
    reach = max(
        10.0,
        float(np.nanmax(np.abs(np.concatenate([truth.rows[:, :2], dots[..., :2].reshape(-1, 2)]))))
        + 4,
    )
    plan = _Plan(side * _FINE, reach)
    plan.ground()
    for group in range(boxes.shape[1]):
        own = Solids(boxes[:, group], [group] * len(boxes)).finite()
        plan.outlines(own)
        plan.links(boxes[:, group], dots[:, group], palette(group))
    plan.outlines(truth)
    return _reduced(plan.canvas.image)


def _view(
    picture: Image.Image,
    matrix: NDArray[np.float64],
    name: str,
    solids: Sequence[Solids],
    width: int,
) -> Image.Image:
    """One camera, with boxes that were found on those that are there."""
    found, truth = solids
    scale = width * _FINE / picture.width
    canvas = Canvas(
        picture.resize((width * _FINE, round(picture.height * scale)), Image.Resampling.LANCZOS), 1
    )
    projection = np.diag([scale, scale, 1, 1]) @ matrix
    _draw_solids(canvas, truth, projection, filled=False)
    _draw_solids(canvas, found, projection, filled=True)
    taken = [canvas.chip(np.zeros(4), name, INK, [])]
    for box, caption, colour in _captioned(canvas, found, projection):
        taken.append(canvas.chip(box, caption, colour, taken))
    return _reduced(canvas.image)


def _draw_solids(
    canvas: Canvas, solids: Solids, projection: NDArray[np.float64], filled: bool
) -> None:
    """Wireframes, the farthest first; the front has a veil of its colour."""
    corners = _projected(solids.corners(), projection)  # [D,8,3]
    pen = ImageDraw.Draw(canvas.image, "RGBA")
    for place in np.argsort(-corners[..., 2].mean(axis=1), kind="stable"):
        colour = solids.colours[place]
        edges = [
            edge for edge in (_in_sight(corners[place, [*pair]]) for pair in _EDGES) if len(edge)
        ]
        front = _in_sight(corners[place, _FRONT])
        if filled and len(front) > 2:
            pen.polygon(_flat(front), fill=(*colour, _VEIL))
        width = _pen_width(canvas, edges) if filled else _TRUTH
        for ink, thick in ((INK, width + 2), (colour, width)):
            for edge in edges:
                pen.line(_flat(edge), fill=ink, width=thick)


def _pen_width(canvas: Canvas, edges: Sequence[NDArray[np.float64]]) -> int:
    """Thinner for what is small, or nothing of it would be seen."""
    if not edges:
        return 1
    extent = np.ptp(np.concatenate(edges), axis=0).max()
    return int(np.clip(extent / 24, 2, canvas.line))


def _captioned(
    canvas: Canvas, solids: Solids, projection: NDArray[np.float64]
) -> Iterator[tuple[NDArray[np.float64], str, Colour]]:
    """x0,y0,x1,y1 of the boxes whose centre is in the picture, with their captions."""
    corners = _projected(solids.corners(), projection)
    centres = _projected(solids.rows[:, None, :3], projection)
    for eight, centre, caption, colour in zip(corners, centres, solids.captions, solids.colours):
        middle, outline = _in_sight(centre), _in_sight(eight)
        if caption and len(middle) and ((middle[0] >= 0) & (middle[0] < canvas.image.size)).all():
            yield np.concatenate([outline.min(axis=0), outline.max(axis=0)]), caption, colour


def _projected(points: NDArray[np.float64], projection: NDArray[np.float64]) -> NDArray[np.float64]:
    """[...,3] points to (u d, v d, d)."""
    return points @ projection[:3, :3].T + projection[:3, 3]


def _in_sight(polygon: NDArray[np.float64]) -> NDArray[np.float64]:
    """[N,3] corners (u d, v d, d) of a polygon, a line or a point to the pixels [M,2] of what is not too near."""
    kept = []
    for here, there in zip(polygon, np.roll(polygon, -1, axis=0)):
        if here[2] >= _NEAR:
            kept.append(here)
        if (here[2] >= _NEAR) != (there[2] >= _NEAR):
            kept.append(here + (there - here) * (_NEAR - here[2]) / (there[2] - here[2]))
    rows = np.array(kept).reshape(-1, 3)
    return rows[:, :2] / rows[:, 2:]


class _Plan:
    """The scene from above, on a canvas of its own."""

    def __init__(self, side: int, sight: float = _SIGHT) -> None:
        self.canvas = Canvas(Image.new("RGB", (side, side), _NIGHT), 1)
        self.pen = ImageDraw.Draw(self.canvas.image, "RGBA")
        self.middle, self.scale = side / 2, side / 2 / sight
        self.line = max(2, round(side / 480))

    def at(self, points: ArrayLike) -> NDArray[np.float64]:
        """[N,2] metres to pixels."""
        return self.middle + np.asarray(points, dtype=np.float64)[..., :2] * [
            self.scale,
            -self.scale,
        ]

    def ground(self) -> None:
        """Rings of distance, and the vehicle in the middle of them."""
        for metres in _RINGS:
            radius = metres * self.scale
            corners = (
                self.middle - radius,
                self.middle - radius,
                self.middle + radius,
                self.middle + radius,
            )
            self.pen.ellipse(corners, outline=_GRID, width=self.line)
            place = self.middle + radius * np.sin(np.pi / 4) + self.line
            self.pen.text(
                (place, place), f"{metres} m", fill=_PALE, font=self.canvas.font, anchor="lt"
            )
        x, y = _VEHICLE[0] / 2, _VEHICLE[1] / 2
        outline = [(-x, -y), (-x, y - 1), (0, y), (x, y - 1), (x, -y)]
        self.pen.polygon(_flat(self.at(outline)), fill=_PALE)

    def links(
        self, boxes: NDArray[np.float64], points: NDArray[np.float64], colour: Colour
    ) -> None:
        """A dot where each query looks, and a line from there to what it says."""
        for box, point in zip(boxes, points):
            if np.isfinite(point[:2]).all() and np.isfinite(box[:2]).all():
                dot, centre = self.at([point[:2], box[:2]])
                self.pen.line(_flat([dot, centre]), fill=colour, width=self.line)
                radius = 2 * self.line
                self.pen.ellipse((*(dot - radius), *(dot + radius)), fill=colour)

    def outlines(self, solids: Solids) -> None:
        for corners, colour in zip(solids.corners(), solids.colours):
            self.pen.line(_flat(self.at(corners[[*_TOP, _TOP[0]]])), fill=colour, width=_TRUTH)

    def boxes(self, solids: Solids) -> None:
        """Filled, with a thick front, and an arrow if they move."""
        self.outlines(solids)
        for row, corners, colour in zip(solids.rows, solids.corners(), solids.colours):
            outline = self.at(corners[_TOP])
            self.pen.polygon(_flat(outline), fill=(*colour, _VEIL))
            self.pen.line(_flat(outline[:2]), fill=colour, width=self.thick(row[4]))
            if np.hypot(*row[7:9]) > _SLOW:
                self.arrow(row[:2], row[:2] + row[7:9], colour)

    def thick(self, length: float) -> int:
        """The pen for the front of a box: no thicker than a third of its length, or small ones would be a blot."""
        return int(np.clip(length * self.scale / 3, self.line, 3 * self.line))

    def arrow(self, start: NDArray[np.float64], end: NDArray[np.float64], colour: Colour) -> None:
        """With a head that is no longer than half of it."""
        tail, tip = self.at([start, end])
        length = np.linalg.norm(tip - tail)
        back = (tip - tail) / length * min(5 * self.line, length / 2)
        aside = back[::-1] * [-0.5, 0.5]
        self.pen.line(_flat([tail, tip - back]), fill=colour, width=self.line)
        self.pen.polygon(_flat([tip, tip - back + aside, tip - back - aside]), fill=colour)

    def with_legend(self, entries: Sequence[tuple[str, Colour]]) -> Image.Image:
        """The plan, and beside it what the colours mean."""
        if not entries:
            return self.canvas.image
        font, side = self.canvas.font, self.canvas.image.height
        line = sum(font.getmetrics())  # type: ignore[union-attr]
        width = 2 * line + max(self.pen.textlength(name, font=font) for name, _ in entries)
        sheet = Image.new("RGB", (side + _FINE * round(width / _FINE), side), _NIGHT)
        sheet.paste(self.canvas.image)
        pen = ImageDraw.Draw(sheet)
        for place, (name, colour) in enumerate(entries):
            y = 1.3 * line * (place + 1)
            pen.rectangle((side, y - line / 4, side + line / 2, y + line / 4), fill=colour)
            pen.text((side + 0.9 * line, y), name, fill=_PALE, font=font, anchor="lm")
        return sheet


def _flat(points: ArrayLike) -> list[tuple[float, float]]:
    """As Pillow takes points."""
    return [(float(x), float(y)) for x, y in np.asarray(points)]


def _reduced(image: Image.Image) -> Image.Image:
    return image.resize((image.width // _FINE, image.height // _FINE), Image.Resampling.BOX)


def _laid_out(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Pictures of equal height side by side, and rows of equal width one below the other."""
    width = sum(image.width for image in rows[0]) + _GAP * (len(rows[0]) - 1)
    sheet = Image.new(
        "RGB", (width, sum(row[0].height for row in rows) + _GAP * (len(rows) - 1)), PAPER
    )
    y = 0
    for row in rows:
        x = 0
        for image in row:
            sheet.paste(image, (x, y))
            x += image.width + _GAP
        y += row[0].height + _GAP
    return sheet
