"""Boxes in space are drawn where the cameras see them, and where they are seen from above."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from groupdetr.visualize.images import PAPER, palette
from groupdetr.visualize.scenes import (
    CAMERAS,
    Solids,
    draw_cameras,
    draw_from_above,
    draw_groups_from_above,
    draw_scene,
)
from tests.visualize.street import CAR, NAMES, SIZE, WALKER, box, matrices, pictures, street

CELLS = dict(
    zip(CAMERAS, ((0, 1), (0, 2), (0, 0), (1, 1), (1, 0), (1, 2)))
)  # row and column of each picture
GAP = 8
NOTHING = Solids(())
FRONT = CAMERAS.index("front")


def seen(found: Solids, truth: Solids = NOTHING, width: int = SIZE[0]) -> dict[str, np.ndarray]:
    """What each camera shows, [H,W,3]."""
    sheet = np.asarray(draw_cameras(pictures(), matrices(), found, truth, width)).astype(int)
    height = width * SIZE[1] // SIZE[0]
    corners = {
        name: (row * (height + GAP), column * (width + GAP))
        for name, (row, column) in CELLS.items()
    }
    return {name: sheet[y : y + height, x : x + width] for name, (y, x) in corners.items()}


def changed(found: Solids) -> dict[str, np.ndarray]:
    """[P,2] x,y of the pixels of each camera that differ from those without boxes."""
    empty, full = seen(NOTHING), seen(found)
    return {
        name: np.argwhere((full[name] != empty[name]).any(axis=-1))[:, ::-1] for name in CAMERAS
    }


def pixels(points: np.ndarray, camera: int = FRONT) -> np.ndarray:
    """[N,3] points to x,y in a camera's picture."""
    flat = np.pad(points, ((0, 0), (0, 1)), constant_values=1) @ matrices()[camera].T
    return flat[:, :2] / flat[:, 2:3]


def test_pictures_stand_as_cameras_do() -> None:
    for index, name in enumerate(CAMERAS):
        assert (seen(NOTHING)[name][40, 100:] == 150 + 8 * index).all(), name


@pytest.mark.parametrize("width", [320, 640])
def test_a_box_is_drawn_around_its_corners(width: int) -> None:
    found = Solids([box(1, 15, CAR, 70)], [0])
    empty, full = seen(NOTHING, width=width)["front"], seen(found, width=width)["front"]
    painted = np.argwhere((full != empty).any(axis=-1))[:, ::-1]
    expected = pixels(found.corners()[0]) * width / SIZE[0]
    assert np.abs(painted.min(axis=0) - expected.min(axis=0)).max() <= 2
    assert np.abs(painted.max(axis=0) - expected.max(axis=0)).max() <= 2


def test_groups_are_linked_from_where_they_look_to_what_they_say() -> None:
    """In the groups' colours; a query that is not there is not drawn."""
    objects, nan = [box(0, 10, CAR, 0)], np.full((1, 1, 9), np.nan)
    said = np.concatenate([np.array([[box(5, 12, CAR, 0)]]), nan], axis=1)
    points = np.array([[[-6.0, -6.0, 0.0], [np.nan] * 3]])
    drawn = np.asarray(draw_groups_from_above(objects, said, points)).reshape(-1, 3)
    assert (drawn == palette(0)).all(axis=1).sum() > 50
    assert not (drawn == palette(1)).all(axis=1).any()
    dot = np.asarray(draw_groups_from_above(objects, nan, points[:, :1], side=480))
    assert not (dot == palette(0)).all(axis=-1).any(), "nothing to link"


def test_a_box_has_its_size_and_looks_along_its_yaw() -> None:
    corners = Solids([[1, 2, 3, 2, 4, 1.5, np.pi / 2, 0, 0]]).corners()[0]
    assert np.allclose(corners.min(axis=0), [0, 0, 2.25])
    assert np.allclose(corners.max(axis=0), [2, 4, 3.75])
    assert np.allclose(corners[:4, 1], 4), "the front comes first"


def test_only_cameras_that_see_a_box_show_it() -> None:
    ahead, behind = (
        changed(Solids([box(0, 15, CAR, 90)], [0])),
        changed(Solids([box(0, -15, CAR, 90)], [0])),
    )
    assert [name for name in CAMERAS if len(ahead[name])] == ["front"]
    assert [name for name in CAMERAS if len(behind[name])] == ["back"]


def test_a_box_beside_the_camera_is_cut_where_the_camera_stands() -> None:
    """Without the cut its rear corners would be seen mirrored, on the right."""
    ahead, behind = (changed(Solids([box(-3, y, (2.0, 18.0, 3.0), 90)], [0])) for y in (6, -6))
    assert (ahead["front"][:, 0].min(), behind["back"][:, 0].max()) == (0, SIZE[0] - 1), (
        "its sides leave the picture"
    )
    assert ahead["front"][:, 0].max() < SIZE[0] / 2
    assert behind["back"][:, 0].min() > SIZE[0] / 2


def test_the_front_is_marked() -> None:
    """A box on the left shows its right side: that is tinted if it is the front, and not if it is the rear."""
    right_side = np.array([[-6 + 2.3, 12, -1.04]])
    x, y = pixels(right_side)[0].astype(int)
    empty = seen(NOTHING)["front"][y, x]
    assert (seen(Solids([box(-6, 12, CAR, 0)], [0]))["front"][y, x] != empty).any()
    assert (seen(Solids([box(-6, 12, CAR, 180)], [0]))["front"][y, x] == empty).all()


def painted(image: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((image == colour).all(axis=-1).sum())


def test_near_boxes_are_drawn_over_far_ones_whatever_their_order() -> None:
    rows, labels = [box(0, 8, CAR, 90), box(0.3, 30, CAR, 90)], [0, 1]
    one, other = (
        seen(Solids([rows[i] for i in order], [labels[i] for i in order]))
        for order in ([0, 1], [1, 0])
    )
    assert (one["front"] == other["front"]).all()


def test_what_is_found_has_the_colour_of_its_class_and_what_is_there_is_white() -> None:
    found, truth = Solids([box(-2, 8, CAR, 90)], [3]), Solids([box(2, 8, CAR, 90)])
    front = seen(found, truth, width=960)["front"]
    left, right = np.split(front[100:], 2, axis=1)  # without the name of the camera
    assert painted(left, palette(3)) > 100
    assert painted(right, palette(3)) == 0
    assert painted(right, PAPER) > 100
    assert painted(left, PAPER) == 0


def test_a_caption_stands_where_the_middle_of_the_box_is_seen() -> None:
    """The box reaches into the front left picture, too."""
    row = box(-4.5, 14, (2.0, 8.0, 3.0), 0)
    plain, named = seen(Solids([row], [0])), seen(Solids([row], [0], ["car 0.95"]))
    assert len(changed(Solids([row], [0]))["front left"]), "it does reach"
    assert [name for name in CAMERAS if (plain[name] != named[name]).any()] == ["front"]


def above(found: Solids, truth: Solids = NOTHING, names: tuple[str, ...] = ()) -> np.ndarray:
    return np.asarray(draw_from_above(found, truth, names, side=540)).astype(int)


def places(found: Solids) -> np.ndarray:
    """[P,2] metres to the right and ahead of the pixels that boxes change; five pixels are a metre."""
    rows, columns = np.nonzero((above(found) != above(NOTHING)).any(axis=-1))
    return np.stack([columns + 0.5 - 270, 270 - rows - 0.5], axis=1) / 5


def test_from_above_ahead_is_up_and_right_is_right() -> None:
    there = places(Solids([box(20, 30, CAR, 90)], [0]))
    assert np.abs(there.min(axis=0) - [20 - 0.95, 30 - 2.3]).max() < 0.6
    assert np.abs(there.max(axis=0) - [20 + 0.95, 30 + 2.3]).max() < 0.6


def test_an_arrow_says_where_a_box_is_in_a_second() -> None:
    moving = places(Solids([box(20, 30, CAR, 0, (12, 0))], [0]))
    assert abs(moving[:, 0].max() - 32) < 0.5
    standing = above(Solids([box(20, 30, CAR, 0)], [0]))
    for velocity in ((0.4, 0), (np.nan, np.nan)):
        assert (above(Solids([box(20, 30, CAR, 0, velocity)], [0])) == standing).all()


def test_from_above_the_front_is_thick() -> None:
    """A car that looks to the right is as dark inside, and lighter where its front is."""
    middle = above(Solids([box(20, 30, CAR, 0)], [0]))[120, 370 - 11 : 370 + 12]
    blue = (np.abs(middle - palette(0)).sum(axis=-1) < 60).astype(int)
    assert blue[-4:].sum() > blue[:4].sum()


def test_the_legend_names_the_classes_that_were_found() -> None:
    found, truth = Solids([box(20, 30, WALKER, 0)] * 2, [8, 8]), Solids([box(20, 30, WALKER, 0)])
    legend = above(found, truth, NAMES)[:, 540:]
    assert painted(legend, palette(8)) > 20
    assert painted(legend, PAPER) > 20
    assert painted(legend, palette(0)) == 0
    assert above(found).shape == (540, 540, 3), "no names, no legend"


def test_a_scene_stands_beside_its_view_from_above() -> None:
    found, truth = street()
    size = (3 * 160 + 2 * GAP + GAP + 188, 2 * 90 + GAP)
    assert draw_scene(pictures(), matrices(), found, width=160).size == size
    named = draw_scene(pictures(), matrices(), found, truth, NAMES, width=160)
    assert named.height == size[1]
    assert named.width > size[0]


def test_whatever_is_said_can_be_drawn() -> None:
    """Nothing, tensors, and boxes that are not finite, huge, or around the camera."""
    nothing = np.asarray(draw_scene(pictures(), matrices(), NOTHING, width=160))
    rows = np.array([box(0, 15, CAR, 90)] * 2)
    rows[0, 0], rows[1, 4] = np.nan, np.inf
    lost = Solids(torch.from_numpy(rows), torch.tensor([0, 1]), ["a", "b"])
    assert (np.asarray(draw_scene(pictures(), matrices(), lost, lost, width=160)) == nothing).all()
    odd = Solids(
        [box(0, 0, (1e6, 1e6, 1e6), 30), box(0, 0, CAR, 90), box(0, 5, (0, 0, 0), 0)],
        [0, 1, 2],
        ["a"] * 3,
    )
    draw_scene(pictures(), torch.from_numpy(matrices()), odd, odd, NAMES, width=160)
