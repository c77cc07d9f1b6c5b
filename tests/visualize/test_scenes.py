"""3D boxes are drawn where cameras record them, and where they are from above."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from groupdetr.visualize.images import PAPER, palette
from groupdetr.visualize.scenes import (
    CAMERAS,
    DrawableBoxes3D,
    draw_cameras,
    draw_from_above,
    draw_groups_from_above,
    draw_scene,
)
from tests.visualize.street import (
    CAR,
    NAMES,
    PEDESTRIAN,
    SIZE,
    box,
    images,
    projections,
    street,
)

# Row and column of each camera's image in the drawing.
LAYOUT = {
    "front left": (0, 0),
    "front": (0, 1),
    "front right": (0, 2),
    "back left": (1, 0),
    "back": (1, 1),
    "back right": (1, 2),
}
GAP = 8  # pixels between images
NO_BOXES = DrawableBoxes3D(())
FRONT = CAMERAS.index("front")


def boxes(*rows: list[float]) -> DrawableBoxes3D:
    """Return boxes of class 0."""
    return DrawableBoxes3D(rows, [0] * len(rows))


def camera_views(
    detections: DrawableBoxes3D, truth: DrawableBoxes3D = NO_BOXES, width: int = SIZE[0]
) -> dict[str, np.ndarray]:
    """Return the drawing of each camera, [H,W,3]."""
    drawing = draw_cameras(images(), projections(), detections, truth, width)
    pixels = np.asarray(drawing).astype(int)
    height = width * SIZE[1] // SIZE[0]
    views = {}
    for name, (row, column) in LAYOUT.items():
        y, x = row * (height + GAP), column * (width + GAP)
        views[name] = pixels[y : y + height, x : x + width]
    return views


def changed_pixels(empty: np.ndarray, drawing: np.ndarray) -> np.ndarray:
    """Return x,y of the pixels in which two images differ, [P,2]."""
    return np.argwhere((drawing != empty).any(axis=-1))[:, ::-1]


def changed_by(detections: DrawableBoxes3D) -> dict[str, np.ndarray]:
    """Return x,y of the pixels of each camera that boxes change, [P,2]."""
    empty, drawing = camera_views(NO_BOXES), camera_views(detections)
    return {name: changed_pixels(empty[name], drawing[name]) for name in CAMERAS}


def project(points: np.ndarray, camera: int = FRONT) -> np.ndarray:
    """Return the pixels x,y of points [N,3] in the image of a camera."""
    homogeneous = np.pad(points, ((0, 0), (0, 1)), constant_values=1) @ projections()[camera].T
    return homogeneous[:, :2] / homogeneous[:, 2:3]


def count_pixels(image: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((image == colour).all(axis=-1).sum())


def test_images_have_the_positions_of_their_cameras() -> None:
    for index, name in enumerate(CAMERAS):
        assert (camera_views(NO_BOXES)[name][40, 100:] == 150 + 8 * index).all(), name


def test_the_image_of_a_camera_of_another_shape_is_drawn_as_a_whole() -> None:
    width, height = SIZE
    recorded = images()
    recorded[FRONT] = recorded[FRONT].resize((width, 2 * height))
    recorded[FRONT].paste((0, 0, 255), (0, height, width, 2 * height))  # the lower half
    drawing = np.asarray(draw_cameras(recorded, projections(), NO_BOXES, width=width))
    assert drawing.shape[:2] == (3 * height + GAP, 3 * width + 2 * GAP)
    left = width + GAP
    lower_half = drawing[height : 2 * height, left : left + width]
    # The rows near the edge are mixed with the upper half.
    assert (lower_half[8:] == (0, 0, 255)).all()


@pytest.mark.parametrize("width", [320, 640])
def test_a_box_is_drawn_around_its_corners(width: int) -> None:
    detections = boxes(box(1, 15, CAR, 70))
    empty = camera_views(NO_BOXES, width=width)["front"]
    drawing = camera_views(detections, width=width)["front"]
    changed = changed_pixels(empty, drawing)
    expected = project(detections.corners()[0]) * width / SIZE[0]
    assert np.abs(changed.min(axis=0) - expected.min(axis=0)).max() <= 2
    assert np.abs(changed.max(axis=0) - expected.max(axis=0)).max() <= 2


def test_lines_lead_from_the_reference_points_of_groups_to_their_boxes() -> None:
    """They have the colours of the groups. A query that is nan is not drawn."""
    objects = [box(0, 10, CAR, 0)]
    missing = np.full((1, 1, 9), np.nan)
    group_boxes = np.concatenate([np.array([[box(5, 12, CAR, 0)]]), missing], axis=1)
    points = np.array([[[-6.0, -6.0, 0.0], [np.nan] * 3]])
    drawing = np.asarray(draw_groups_from_above(objects, group_boxes, points))
    assert count_pixels(drawing, palette(0)) > 50
    assert count_pixels(drawing, palette(1)) == 0
    without_box = np.asarray(draw_groups_from_above(objects, missing, points[:, :1], side=480))
    assert count_pixels(without_box, palette(0)) == 0, "a point without a box is not drawn"
    # A scene without objects has no queries either.
    none = draw_groups_from_above(np.zeros((0, 9)), group_boxes[:0], points[:0])
    assert none.size == without_box.shape[1::-1]
    assert count_pixels(np.asarray(none), palette(0)) == 0


def test_a_box_has_its_size_and_its_front_in_the_direction_of_its_yaw() -> None:
    corners = DrawableBoxes3D([[1, 2, 3, 2, 4, 1.5, np.pi / 2, 0, 0]]).corners()[0]
    assert np.allclose(corners.min(axis=0), [0, 0, 2.25])
    assert np.allclose(corners.max(axis=0), [2, 4, 3.75])
    assert np.allclose(corners[:4, 1], 4), "the front comes first"


def test_a_box_is_drawn_only_on_the_images_that_show_it() -> None:
    ahead = changed_by(boxes(box(0, 15, CAR, 90)))
    behind = changed_by(boxes(box(0, -15, CAR, 90)))
    assert [name for name in CAMERAS if len(ahead[name])] == ["front"]
    assert [name for name in CAMERAS if len(behind[name])] == ["back"]


def test_a_box_beside_the_camera_is_clipped_at_the_near_plane() -> None:
    """Without clipping, its rear corners would be mirrored to the right side."""
    ahead = changed_by(boxes(box(-3, 6, (2.0, 18.0, 3.0), 90)))["front"]
    behind = changed_by(boxes(box(-3, -6, (2.0, 18.0, 3.0), 90)))["back"]
    assert ahead[:, 0].min() == 0, "its side reaches the edge of the image"
    assert behind[:, 0].max() == SIZE[0] - 1
    assert ahead[:, 0].max() < SIZE[0] / 2
    assert behind[:, 0].min() > SIZE[0] / 2


def test_the_front_face_is_tinted() -> None:
    """A box on the left shows its right side, which is its front or its rear."""
    right_side = np.array([[-6 + 2.3, 12, -1.04]])
    x, y = project(right_side)[0].astype(int)
    empty = camera_views(NO_BOXES)["front"][y, x]
    front = camera_views(boxes(box(-6, 12, CAR, 0)))["front"][y, x]
    rear = camera_views(boxes(box(-6, 12, CAR, 180)))["front"][y, x]
    assert (front != empty).any()
    assert (rear == empty).all()


def test_near_boxes_are_drawn_over_far_ones_in_any_order() -> None:
    near, far = box(0, 8, CAR, 90), box(0.3, 30, CAR, 90)
    near_first = camera_views(DrawableBoxes3D([near, far], [0, 1]))
    far_first = camera_views(DrawableBoxes3D([far, near], [1, 0]))
    assert (near_first["front"] == far_first["front"]).all()


def test_detections_have_the_colour_of_their_class_and_annotated_objects_are_white() -> None:
    detections = DrawableBoxes3D([box(-2, 8, CAR, 90)], [3])
    truth = DrawableBoxes3D([box(2, 8, CAR, 90)])
    front = camera_views(detections, truth, width=960)["front"]
    below_the_camera_name = front[100:]
    left, right = np.split(below_the_camera_name, 2, axis=1)
    assert count_pixels(left, palette(3)) > 100
    assert count_pixels(right, palette(3)) == 0
    assert count_pixels(right, PAPER) > 100
    assert count_pixels(left, PAPER) == 0


def test_a_caption_is_on_the_image_that_shows_the_centre_of_the_box() -> None:
    """The box reaches into the front left image, too."""
    row = box(-4.5, 14, (2.0, 8.0, 3.0), 0)
    plain = camera_views(boxes(row))
    captioned = camera_views(DrawableBoxes3D([row], [0], ["car 0.95"]))
    assert len(changed_by(boxes(row))["front left"]), "the box reaches into that image"
    assert [name for name in CAMERAS if (plain[name] != captioned[name]).any()] == ["front"]


def from_above(
    detections: DrawableBoxes3D,
    truth: DrawableBoxes3D = NO_BOXES,
    class_names: tuple[str, ...] = (),
) -> np.ndarray:
    """Return the drawing from above, [540,W,3]. Five pixels are a metre."""
    return np.asarray(draw_from_above(detections, truth, class_names, side=540)).astype(int)


def changed_metres(detections: DrawableBoxes3D) -> np.ndarray:
    """Return metres to the right and ahead of the pixels that boxes change, [P,2]."""
    changed = changed_pixels(from_above(NO_BOXES), from_above(detections))
    return np.stack([changed[:, 0] + 0.5 - 270, 270 - changed[:, 1] - 0.5], axis=1) / 5


def test_from_above_ahead_is_up_and_right_is_right() -> None:
    positions = changed_metres(boxes(box(20, 30, CAR, 90)))
    assert np.abs(positions.min(axis=0) - [20 - 0.95, 30 - 2.3]).max() < 0.6
    assert np.abs(positions.max(axis=0) - [20 + 0.95, 30 + 2.3]).max() < 0.6


def test_an_arrow_ends_where_a_box_is_after_one_second() -> None:
    moving = changed_metres(boxes(box(20, 30, CAR, 0, (12, 0))))
    assert abs(moving[:, 0].max() - 32) < 0.5
    standing = from_above(boxes(box(20, 30, CAR, 0)))
    for velocity in ((0.4, 0), (np.nan, np.nan)):
        assert (from_above(boxes(box(20, 30, CAR, 0, velocity))) == standing).all()


def test_from_above_the_front_edge_is_thick() -> None:
    """Of a car that faces right, the pixels with the full colour are at the right."""
    row = from_above(boxes(box(20, 30, CAR, 0)))[120, 370 - 11 : 370 + 12]
    has_full_colour = (np.abs(row - palette(0)).sum(axis=-1) < 60).astype(int)
    assert has_full_colour[-4:].sum() > has_full_colour[:4].sum()


def test_the_legend_names_the_detected_classes() -> None:
    detections = DrawableBoxes3D([box(20, 30, PEDESTRIAN, 0)] * 2, [8, 8])
    truth = DrawableBoxes3D([box(20, 30, PEDESTRIAN, 0)])
    legend = from_above(detections, truth, NAMES)[:, 540:]
    assert count_pixels(legend, palette(8)) > 20
    assert count_pixels(legend, PAPER) > 20
    assert count_pixels(legend, palette(0)) == 0
    assert from_above(detections).shape == (540, 540, 3), "without names there is no legend"


def test_a_scene_has_the_images_and_the_view_from_above_side_by_side() -> None:
    detections, truth = street()
    size = (3 * 160 + 2 * GAP + GAP + 188, 2 * 90 + GAP)
    assert draw_scene(images(), projections(), detections, width=160).size == size
    with_legend = draw_scene(images(), projections(), detections, truth, NAMES, width=160)
    assert with_legend.height == size[1]
    assert with_legend.width > size[0]


def test_any_prediction_can_be_drawn() -> None:
    """No boxes, tensors, and boxes that are not finite, huge, or around the camera."""
    empty = np.asarray(draw_scene(images(), projections(), NO_BOXES, width=160))
    rows = np.array([box(0, 15, CAR, 90)] * 2)
    rows[0, 0] = np.nan
    rows[1, 4] = np.inf
    labels = torch.tensor([0, 1])
    not_finite = DrawableBoxes3D(torch.from_numpy(rows), labels, ["a", "b"])
    drawing = draw_scene(images(), projections(), not_finite, not_finite, width=160)
    assert (np.asarray(drawing) == empty).all()
    extreme = DrawableBoxes3D(
        [box(0, 0, (1e6, 1e6, 1e6), 30), box(0, 0, CAR, 90), box(0, 5, (0, 0, 0), 0)],
        [0, 1, 2],
        ["a"] * 3,
    )
    matrices = torch.from_numpy(projections())
    draw_scene(images(), matrices, extreme, extreme, NAMES, width=160)
