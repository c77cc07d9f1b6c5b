"""Drawing of 3D boxes in a scene: on the images of six cameras, and from above.

Boxes are x, y, z, width, length, height, yaw, vx, vy in the lidar frame (x right, y ahead, z up;
metres, radians), as detectors predict them. Detections have the colours of their classes, and
annotated objects are white. Only Pillow is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

from groupdetr.visualize.images import (
    INK,
    MIN_FONT_SIZE,
    PAPER,
    Colour,
    DrawingCanvas,
    palette,
)

Floats = NDArray[np.float64]

CAMERAS = ("front", "front right", "front left", "back", "back left", "back right")  # image order
_CAMERA_LAYOUT = ((2, 0, 1), (4, 3, 5))  # indices of CAMERAS in the two rows of the drawing
_NEAR_PLANE = 0.2  # metres in front of a camera: nearer parts of a box are not drawn
_SUPERSAMPLING = 2  # images are drawn larger and then reduced, so that lines have smooth edges
_GAP = 8  # pixels between the images
_RING_RADII = range(10, 60, 10)  # metres
_VIEW_RADIUS = 54.0  # metres from the centre of the view from above to its edges
_VEHICLE_SIZE = (1.9, 4.6)  # metres, width and length of the vehicle that carries the cameras
_BACKGROUND: Colour = (27, 30, 36)
_RING_COLOUR: Colour = (70, 76, 88)
_TEXT_COLOUR: Colour = (176, 182, 192)
_FACE_ALPHA = 84  # opacity of filled faces, of 255
_TRUTH_LINE_WIDTH = 3  # pixels, of annotated objects
_MIN_ARROW_SPEED = 0.5  # m/s: slower boxes get no arrow

# Corners of a box, in units of its length, width and height from its centre: the front face, then
# the back face, both in the order upper left, upper right, lower right, lower left, seen from
# behind.
_FACE_CORNERS = ((0.5, 0.5), (-0.5, 0.5), (-0.5, -0.5), (0.5, -0.5))
_CORNERS = np.array([[x, y, z] for x in (0.5, -0.5) for y, z in _FACE_CORNERS])
_FRONT_FACE = [0, 1, 2, 3]
_EDGES = (
    *((0, 1), (1, 2), (2, 3), (3, 0)),  # of the front face
    *((4, 5), (5, 6), (6, 7), (7, 4)),  # of the back face
    *((0, 4), (1, 5), (2, 6), (3, 7)),  # from front to back
)
_TOP_FACE = [0, 1, 5, 4]  # front left, front right, back right, back left


@dataclass(frozen=True)
class DrawableBoxes3D:
    """D boxes of a scene with what is needed to draw them."""

    boxes: ArrayLike  # [D,9]; tensors are allowed
    labels: ArrayLike = ()  # [D] class indices; without them all boxes are white
    captions: Sequence[str] = ()  # [D] or empty, sorted by decreasing score

    @property
    def rows(self) -> Floats:
        """The boxes as an array [D,9]."""
        return np.asarray(self.boxes, dtype=np.float64).reshape(-1, 9)

    @property
    def colours(self) -> list[Colour]:
        """[D] the colours of the classes, or white."""
        labels = np.asarray(self.labels).reshape(-1)
        if not len(labels):
            return [PAPER] * len(self.rows)
        return [palette(int(label)) for label in labels]

    def finite(self) -> DrawableBoxes3D:
        """Return the boxes whose position, size and yaw are finite. Velocities may be unknown."""
        is_finite = np.asarray(np.isfinite(self.rows[:, :7]).all(axis=1))
        labels = np.asarray(self.labels).reshape(-1)
        captions = [caption for caption, keep in zip(self.captions, is_finite) if keep]
        return DrawableBoxes3D(
            self.rows[is_finite], labels[is_finite] if len(labels) else (), captions
        )

    def corners(self) -> Floats:
        """Return the corners [D,8,3] in the order of `_CORNERS`."""
        rows = self.rows
        length_width_height = rows[:, None, [4, 3, 5]]
        offsets = _CORNERS * length_width_height  # [D,8,3] in the axes of each box
        along, across, up = offsets[..., 0], offsets[..., 1], offsets[..., 2]
        cos, sin = np.cos(rows[:, 6:7]), np.sin(rows[:, 6:7])
        x = along * cos - across * sin
        y = along * sin + across * cos
        return rows[:, None, :3] + np.stack([x, y, up], axis=-1)


_NO_BOXES = DrawableBoxes3D(())


def draw_scene(
    images: Sequence[Image.Image],
    lidar_to_image: ArrayLike,
    detections: DrawableBoxes3D,
    truth: DrawableBoxes3D = _NO_BOXES,
    class_names: Sequence[str] = (),
    width: int = 640,
) -> Image.Image:
    """Draw boxes on six images, each ``width`` pixels wide, and a view from above next to them.

    ``images`` come in the order of CAMERAS. ``lidar_to_image`` [6,4,4] maps (x, y, z, 1) to (u d,
    v d, d, 1), with u and v in pixels of the images and d in metres in front of the camera. With
    ``class_names`` there is a legend.
    """
    camera_views = draw_cameras(images, lidar_to_image, detections, truth, width)
    from_above = draw_from_above(detections, truth, class_names, camera_views.height)
    return _arrange([[camera_views, from_above]])


def draw_cameras(
    images: Sequence[Image.Image],
    lidar_to_image: ArrayLike,
    detections: DrawableBoxes3D,
    truth: DrawableBoxes3D = _NO_BOXES,
    width: int = 640,
) -> Image.Image:
    """Draw boxes on six images, in two rows.

    The rows are: front left, front, front right; back left, back, back right.
    """
    projections = np.asarray(lidar_to_image, dtype=np.float64)
    detections, truth = detections.finite(), truth.finite()
    views = []
    for image, projection, name in zip(images, projections, CAMERAS, strict=True):
        views.append(_draw_camera(image, projection, name, detections, truth, width))
    return _arrange([[views[index] for index in row] for row in _CAMERA_LAYOUT])


def draw_from_above(
    detections: DrawableBoxes3D,
    truth: DrawableBoxes3D = _NO_BOXES,
    class_names: Sequence[str] = (),
    side: int = 720,
) -> Image.Image:
    """Draw boxes from above, with the direction ahead at the top.

    The image is ``side`` pixels high, and as wide, or wider if there is a legend. Boxes have a
    thick front edge, and arrows end where the boxes will be in one second.
    """
    view = _BirdsEyeView(side * _SUPERSAMPLING)
    view.draw_ground()
    detections, truth = detections.finite(), truth.finite()
    view.draw_outlines(truth)
    view.draw_boxes(detections)
    entries: list[tuple[str, Colour]] = []
    if class_names:
        labels = np.asarray(detections.labels).reshape(-1)
        for label in sorted({int(label) for label in labels}):
            entries.append((class_names[label], palette(label)))
    if len(truth.rows):
        entries.append(("annotated", PAPER))
    return _reduce(view.with_legend(entries))


def draw_groups_from_above(
    object_boxes: ArrayLike, group_boxes: ArrayLike, group_points: ArrayLike, side: int = 480
) -> Image.Image:
    """Draw from above the queries that K groups have matched to T objects.

    ``object_boxes`` [T,9] are white. ``group_boxes`` [T,K,9], the boxes that the queries predict,
    have the colours of the groups. A dot marks each reference point of ``group_points`` [T,K,3],
    and a line connects it with the box. Queries whose values are nan are left out.
    """
    boxes = np.asarray(group_boxes, dtype=np.float64)
    points = np.asarray(group_points, dtype=np.float64)
    objects = DrawableBoxes3D(object_boxes).finite()
    # The view shows all objects and reference points, with a margin of 4 m, and at least 10 m.
    centres = np.concatenate([objects.rows[:, :2], points[..., :2].reshape(-1, 2)])
    # A scene may have no object.
    radius = max(10.0, float(np.nanmax(np.abs(centres), initial=0.0)) + 4)
    view = _BirdsEyeView(side * _SUPERSAMPLING, radius)
    view.draw_ground()
    for group in range(boxes.shape[1]):
        labels = [group] * len(boxes)
        view.draw_outlines(DrawableBoxes3D(boxes[:, group], labels).finite())
        view.draw_links(boxes[:, group], points[:, group], palette(group))
    view.draw_outlines(objects)
    return _reduce(view.canvas.image)


def _draw_camera(
    image: Image.Image,
    lidar_to_image: Floats,
    name: str,
    detections: DrawableBoxes3D,
    truth: DrawableBoxes3D,
    width: int,
) -> Image.Image:
    """Draw boxes on the image of one camera, detections on top of annotated objects."""
    scale = width * _SUPERSAMPLING / image.width
    size = (width * _SUPERSAMPLING, round(image.height * scale))
    min_font_size = _SUPERSAMPLING * MIN_FONT_SIZE
    canvas = DrawingCanvas(image.resize(size, Image.Resampling.LANCZOS), 1, min_font_size)
    projection = np.diag([scale, scale, 1, 1]) @ lidar_to_image
    _draw_wireframes(canvas, truth, projection, filled=False)
    _draw_wireframes(canvas, detections, projection, filled=True)
    # The labels of boxes do not cover the name of the camera.
    camera_label = canvas.draw_corner_label(name, INK)
    captions = list(_visible_captions(canvas, detections, projection))
    canvas.draw_labels(captions, [camera_label])
    return _reduce(canvas.image)


def _draw_wireframes(
    canvas: DrawingCanvas, boxes: DrawableBoxes3D, projection: Floats, filled: bool
) -> None:
    """Draw the edges of boxes, from the farthest to the nearest.

    ``filled`` is True if front faces have a translucent colour.
    """
    corners = _project(boxes.corners(), projection)  # [D,8,3] as (u d, v d, d)
    mean_depths = corners[..., 2].mean(axis=1)
    colours = boxes.colours
    pen = ImageDraw.Draw(canvas.image, "RGBA")
    for index in np.argsort(-mean_depths, kind="stable"):
        colour = colours[index]
        edges = []
        for pair in _EDGES:
            edge = _clip_to_pixels(corners[index, [*pair]])
            if len(edge):
                edges.append(edge)
        front = _clip_to_pixels(corners[index, _FRONT_FACE])
        if filled and len(front) > 2:
            pen.polygon(_to_tuples(front), fill=(*colour, _FACE_ALPHA))
        width = _line_width(canvas, edges) if filled else _TRUTH_LINE_WIDTH
        # A wider dark line under the coloured one makes it visible on any background.
        for line_colour, line_width in ((INK, width + 2), (colour, width)):
            for edge in edges:
                pen.line(_to_tuples(edge), fill=line_colour, width=line_width)


def _line_width(canvas: DrawingCanvas, edges: Sequence[Floats]) -> int:
    """Return the line width of a box. Small boxes get thin lines, which do not fill them."""
    if not edges:
        return 1
    extent = np.ptp(np.concatenate(edges), axis=0).max()
    return int(np.clip(extent / 24, 2, canvas.line_width))


def _visible_captions(
    canvas: DrawingCanvas, boxes: DrawableBoxes3D, projection: Floats
) -> Iterator[tuple[Floats, str, Colour]]:
    """Yield x0,y0,x1,y1, caption and colour of the boxes whose centre is in the image."""
    all_corners = _project(boxes.corners(), projection)
    centres = _project(boxes.rows[:, None, :3], projection)
    rows = zip(all_corners, centres, boxes.captions, boxes.colours)
    for corners, centre, caption, colour in rows:
        centre_pixels = _clip_to_pixels(centre)  # empty if it is behind the near plane
        if not caption or not len(centre_pixels):
            continue
        position = centre_pixels[0]
        if ((position >= 0) & (position < canvas.image.size)).all():
            outline = _clip_to_pixels(corners)
            yield np.concatenate([outline.min(axis=0), outline.max(axis=0)]), caption, colour


def _project(points: Floats, projection: Floats) -> Floats:
    """Map points [...,3] to (u d, v d, d)."""
    return points @ projection[:3, :3].T + projection[:3, 3]


def _clip_to_pixels(polygon: Floats) -> Floats:
    """Return the pixels [M,2] of the part of a polygon that is beyond the near plane.

    ``polygon`` [N,3] has corners (u d, v d, d). It may also be a line or a point.
    """
    visible = []
    for start, end in zip(polygon, np.roll(polygon, -1, axis=0)):
        start_visible = start[2] >= _NEAR_PLANE
        end_visible = end[2] >= _NEAR_PLANE
        if start_visible:
            visible.append(start)
        if start_visible != end_visible:
            visible.append(start + (end - start) * (_NEAR_PLANE - start[2]) / (end[2] - start[2]))
    corners = np.array(visible).reshape(-1, 3)
    return corners[:, :2] / corners[:, 2:]


class _BirdsEyeView:
    """A square image of the scene from above, with the vehicle in its centre."""

    def __init__(self, side: int, view_radius: float = _VIEW_RADIUS) -> None:
        self.canvas = DrawingCanvas(Image.new("RGB", (side, side), _BACKGROUND), 1)
        self.pen = ImageDraw.Draw(self.canvas.image, "RGBA")
        self.centre = side / 2
        self.scale = side / 2 / view_radius  # pixels per metre
        self.line_width = max(2, round(side / 480))

    def to_pixels(self, points: ArrayLike) -> Floats:
        """Map points [N,2|3] in metres to pixels [N,2]."""
        position = np.asarray(points, dtype=np.float64)[..., :2]
        return self.centre + position * [self.scale, -self.scale]

    def draw_ground(self) -> None:
        """Draw rings of equal distance, and the vehicle in their centre."""
        for metres in _RING_RADII:
            radius = metres * self.scale
            low, high = self.centre - radius, self.centre + radius
            ring = (low, low, high, high)
            self.pen.ellipse(ring, outline=_RING_COLOUR, width=self.line_width)
            # The label is at the lower right of the ring, just outside.
            label = self.centre + radius * np.sin(np.pi / 4) + self.line_width
            font = self.canvas.font
            text = f"{metres} m"
            self.pen.text((label, label), text, fill=_TEXT_COLOUR, font=font, anchor="lt")
        # The vehicle is a rectangle with a pointed front.
        x, y = _VEHICLE_SIZE[0] / 2, _VEHICLE_SIZE[1] / 2
        outline = [(-x, -y), (-x, y - 1), (0, y), (x, y - 1), (x, -y)]
        self.pen.polygon(_to_tuples(self.to_pixels(outline)), fill=_TEXT_COLOUR)

    def draw_links(self, boxes: Floats, points: Floats, colour: Colour) -> None:
        """Draw a dot at each reference point, and a line from it to the predicted box."""
        for box, point in zip(boxes, points):
            if np.isfinite(point[:2]).all() and np.isfinite(box[:2]).all():
                dot, box_centre = self.to_pixels([point[:2], box[:2]])
                self.pen.line(_to_tuples([dot, box_centre]), fill=colour, width=self.line_width)
                radius = 2 * self.line_width
                self.pen.ellipse((*(dot - radius), *(dot + radius)), fill=colour)

    def draw_outlines(self, boxes: DrawableBoxes3D) -> None:
        """Draw the outlines of boxes."""
        for corners, colour in zip(boxes.corners(), boxes.colours):
            outline = self.to_pixels(corners[[*_TOP_FACE, _TOP_FACE[0]]])
            self.pen.line(_to_tuples(outline), fill=colour, width=_TRUTH_LINE_WIDTH)

    def draw_boxes(self, boxes: DrawableBoxes3D) -> None:
        """Draw filled boxes with a thick front edge, and an arrow if they move."""
        self.draw_outlines(boxes)
        for row, corners, colour in zip(boxes.rows, boxes.corners(), boxes.colours):
            outline = self.to_pixels(corners[_TOP_FACE])
            self.pen.polygon(_to_tuples(outline), fill=(*colour, _FACE_ALPHA))
            front_width = self.front_width(row[4])
            self.pen.line(_to_tuples(outline[:2]), fill=colour, width=front_width)
            centre = row[:2]
            velocity = row[7:9]
            # An unknown velocity is nan and not greater than any speed.
            if np.hypot(*velocity) > _MIN_ARROW_SPEED:
                self.draw_arrow(centre, centre + velocity, colour)

    def front_width(self, length: float) -> int:
        """Return the line width of a front edge, at most a third of the box's length.

        Otherwise it would cover small boxes.
        """
        return int(np.clip(length * self.scale / 3, self.line_width, 3 * self.line_width))

    def draw_arrow(self, start: Floats, end: Floats, colour: Colour) -> None:
        """Draw an arrow whose head takes at most half of its length."""
        tail, tip = self.to_pixels([start, end])
        length = np.linalg.norm(tip - tail)
        head = (tip - tail) / length * min(5 * self.line_width, length / 2)
        sideways = head[::-1] * [-0.5, 0.5]  # perpendicular to the arrow, half as long
        head_base = tip - head
        self.pen.line(_to_tuples([tail, head_base]), fill=colour, width=self.line_width)
        triangle = [tip, head_base + sideways, head_base - sideways]
        self.pen.polygon(_to_tuples(triangle), fill=colour)

    def with_legend(self, entries: Sequence[tuple[str, Colour]]) -> Image.Image:
        """Return the view, with a legend at its right side if there are entries."""
        if not entries:
            return self.canvas.image
        font = self.canvas.font
        side = self.canvas.image.height
        line_height = sum(font.getmetrics())
        text_widths = [self.pen.textlength(name, font=font) for name, _ in entries]
        width = 2 * line_height + max(text_widths)
        # The whole width must be divisible by the factor of the reduction.
        legend_width = _SUPERSAMPLING * round(width / _SUPERSAMPLING)
        image = Image.new("RGB", (side + legend_width, side), _BACKGROUND)
        image.paste(self.canvas.image)
        pen = ImageDraw.Draw(image)
        for index, (name, colour) in enumerate(entries):
            y = 1.3 * line_height * (index + 1)
            quarter = line_height / 4
            swatch = (side, y - quarter, side + line_height / 2, y + quarter)
            pen.rectangle(swatch, fill=colour)
            text_position = (side + 0.9 * line_height, y)
            pen.text(text_position, name, fill=_TEXT_COLOUR, font=font, anchor="lm")
        return image


def _to_tuples(points: ArrayLike) -> list[tuple[float, float]]:
    """Return points [N,2] as Pillow takes them."""
    return [(float(x), float(y)) for x, y in np.asarray(points)]


def _reduce(image: Image.Image) -> Image.Image:
    """Return a drawing at its final size."""
    size = (image.width // _SUPERSAMPLING, image.height // _SUPERSAMPLING)
    return image.resize(size, Image.Resampling.BOX)


def _arrange(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Arrange images in rows, which have one width. A row is as high as its highest image."""
    first_row = rows[0]
    width = sum(image.width for image in first_row) + _GAP * (len(first_row) - 1)
    # Cameras may record images of different shapes.
    row_heights = [max(image.height for image in row) for row in rows]
    height = sum(row_heights) + _GAP * (len(rows) - 1)
    arranged = Image.new("RGB", (width, height), PAPER)
    y = 0
    for row, row_height in zip(rows, row_heights):
        x = 0
        for image in row:
            arranged.paste(image, (x, y))
            x += image.width + _GAP
        y += row_height + _GAP
    return arranged
