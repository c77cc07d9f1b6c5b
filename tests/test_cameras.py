"""Images of cameras know where every pixel looks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from groupdetr.cameras import CameraImages
from groupdetr.encoders.camera import FARTHEST, HIGH, LOW, NEAREST, CameraEncoder, depths
from groupdetr.places import Given
from tests.parity import petr

PIXELS = torch.zeros(2, 6, 3, *petr.IMAGE)


def scene() -> CameraImages:
    return CameraImages.seen_through(PIXELS, petr.cameras(1), torch.zeros(2))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"pixels": PIXELS[0]}, "pixels"),
        ({"image_to_lidar": torch.eye(4).expand(2, 5, 4, 4)}, "image_to_lidar"),
        ({"elapsed": torch.zeros(3)}, "elapsed"),
    ],
)
def test_parts_that_do_not_fit_are_refused(wrong: dict[str, Tensor], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        CameraImages(**{**vars(scene()), **wrong})


def test_projections_are_inverted_in_double_precision() -> None:
    exact = torch.linalg.inv(petr.cameras(1))
    assert scene().image_to_lidar.dtype == torch.float32
    assert torch.equal(scene().image_to_lidar, exact.float())


def test_points_on_a_pixels_ray_are_projected_onto_the_pixel() -> None:
    """Back through the camera, at every depth, where they lie in the space that is told apart."""
    encoder = CameraEncoder(torch.nn.Identity(), 8, Given(), stride=16)
    shares = encoder.along_rays(scene().image_to_lidar, *petr.MAP).unflatten(-1, (-1, 3)).sigmoid()
    low, high = torch.tensor(LOW), torch.tensor(HIGH)
    inside = ((shares > 1e-4) & (shares < 1 - 1e-4)).all(-1)
    points = torch.nn.functional.pad(low + shares * (high - low), (0, 1), value=1.0).double()
    seen = torch.einsum("bvij,bvhwdj->bvhwdi", petr.cameras(1), points)
    depth = seen[..., 2]
    rows, columns = (16.0 * torch.arange(n) for n in petr.MAP)
    assert inside.float().mean() > 0.3
    assert (depth - depths())[inside].abs().max() < 0.05
    assert (seen[..., 0] / depth - columns.view(-1, 1))[inside].abs().max() < 0.2
    assert (seen[..., 1] / depth - rows.view(-1, 1, 1))[inside].abs().max() < 0.2


def test_depths_begin_at_a_metre_and_grow() -> None:
    assert depths()[0] == NEAREST
    assert depths()[-1] < FARTHEST
    assert (depths().diff().diff() > 0).all()
