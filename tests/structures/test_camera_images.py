"""Images of cameras know where every pixel looks."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from groupdetr.modeling.encoders.camera_encoder import (
    FARTHEST,
    HIGH,
    LOW,
    NEAREST,
    CameraEncoder,
    depths,
)
from groupdetr.modeling.mlp import MLP
from groupdetr.modeling.position_embedding import Gated, Given
from groupdetr.structures.camera_images import CameraImages
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


# what tokens are told of where they are


@pytest.mark.parametrize("gated", [False, True], ids=["PETR", "PETRv2"])
def test_positions_are_those_of_the_papers_written_out(gated: bool) -> None:
    """Matrices and 1x1 convolutions, view by view, as the published code has them."""
    torch.manual_seed(0)
    channels = 16
    place = Gated(MLP(channels, channels, channels, num_layers=2)) if gated else Given()
    encoder = CameraEncoder(torch.nn.Identity(), channels, place, stride=16)
    maps = torch.randn(2 * 6, channels, *petr.MAP)
    with torch.no_grad():
        memory = encoder.encode(maps, *scene().beside)
        told = (memory.tokens, memory.position)
        tokens, positions = (x.unflatten(1, (6, *petr.MAP)).permute(0, 1, 4, 2, 3) for x in told)
        assert torch.equal(tokens.flatten(0, 1), maps)
        for b, v in ((0, 0), (1, 4)):
            space = convolved(encoder.points, points(scene().image_to_lidar[b, v]))
            if isinstance(place, Gated):
                space = space * convolved(place.gate, maps[6 * b + v]).sigmoid()
            expected = space + convolved(encoder.views, waves(v, channels // 2))
            assert (positions[b, v] - expected).abs().max() < 1e-5


def convolved(mlp: MLP, x: Tensor) -> Tensor:
    """[C,H,W] -> [C',H,W]"""
    first, last = mlp.layers
    hidden = F.conv2d(x[None], first.weight[..., None, None], first.bias).relu()
    return F.conv2d(hidden, last.weight[..., None, None], last.bias)[0]


def points(image_to_lidar: Tensor) -> Tensor:
    """[3*D,H,W], point after point."""
    height, width = petr.MAP
    maps = []
    for i in range(64):
        depth = 1 + (61.2 - 1) / (64 * 65) * i * (i + 1)
        v, u = torch.meshgrid(
            16.0 * torch.arange(height), 16.0 * torch.arange(width), indexing="ij"
        )
        frustum = torch.stack(
            [u * depth, v * depth, torch.full_like(u, depth), torch.ones_like(u)], dim=-1
        )
        x, y, z, _ = (frustum @ image_to_lidar.T).unbind(-1)
        for value, (low, high) in zip((x, y, z), ((-61.2, 61.2), (-61.2, 61.2), (-10, 10))):
            share = ((value - low) / (high - low)).clamp(0, 1)
            maps.append((share.clamp(min=1e-5) / (1 - share).clamp(min=1e-5)).log())
    return torch.stack(maps)


def waves(view: int, channels: int) -> Tensor:
    """[3*channels,H,W] of one of six views, of each axis the sines first."""
    place = torch.zeros(3 * channels, *petr.MAP)
    for row, column in product(*map(range, petr.MAP)):
        for axis, (index, size) in enumerate(zip((view, row, column), (6, *petr.MAP))):
            half = channels // 2
            for k in range(half):
                angle = (index + 1) / (size + 1e-6) * 2 * math.pi / 10000 ** (2 * k / channels)
                place[axis * channels + k, row, column] = math.sin(angle)
                place[axis * channels + half + k, row, column] = math.cos(angle)
    return place
