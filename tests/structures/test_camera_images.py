"""Camera images: validation, and the 3D geometry and position embeddings computed from them."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from groupdetr.modeling.encoders.camera_encoder import (
    SPACE_HIGH,
    SPACE_LOW,
    CameraEncoder,
    ray_depths,
)
from groupdetr.modeling.mlp import MLP
from groupdetr.modeling.position_embedding import FixedPositionEmbedding, GatedPositionEmbedding
from groupdetr.structures.camera_images import CameraImages
from tests.parity import petr

PIXELS = torch.zeros(2, 6, 3, *petr.IMAGE)
STRIDE = 16


def camera_images() -> CameraImages:
    return CameraImages.from_projections(PIXELS, petr.cameras(1), torch.zeros(2))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("pixels", PIXELS[0]),
        ("image_to_lidar", torch.eye(4).expand(2, 5, 4, 4)),
        ("elapsed", torch.zeros(3)),
    ],
)
def test_fields_with_a_wrong_shape_are_refused(field: str, value: Tensor) -> None:
    fields = {**vars(camera_images()), field: value}
    with pytest.raises(ValueError, match=field):
        CameraImages(**fields)


def test_projections_are_inverted_in_double_precision() -> None:
    exact = torch.linalg.inv(petr.cameras(1))
    assert camera_images().image_to_lidar.dtype == torch.float32
    assert torch.equal(camera_images().image_to_lidar, exact.float())


def test_points_on_the_ray_of_a_pixel_are_projected_to_the_pixel() -> None:
    """This is tested at every depth for the points inside of the embedded space."""
    encoder = CameraEncoder(nn.Identity(), 8, FixedPositionEmbedding(), stride=STRIDE)
    normalised = encoder.frustum_points(camera_images().image_to_lidar, *petr.MAP)
    normalised = normalised.unflatten(-1, (-1, 3)).sigmoid()  # [B,V,H,W,depths,3]
    inside = ((normalised > 1e-4) & (normalised < 1 - 1e-4)).all(-1)
    low, high = torch.tensor(SPACE_LOW), torch.tensor(SPACE_HIGH)
    points = F.pad(low + normalised * (high - low), (0, 1), value=1.0).double()
    projected = torch.einsum("bvij,bvhwdj->bvhwdi", petr.cameras(1), points)
    depth = projected[..., 2]
    rows, columns = (float(STRIDE) * torch.arange(size) for size in petr.MAP)
    assert inside.float().mean() > 0.3
    assert (depth - ray_depths())[inside].abs().max() < 0.05
    assert (projected[..., 0] / depth - columns.view(-1, 1))[inside].abs().max() < 0.2
    assert (projected[..., 1] / depth - rows.view(-1, 1, 1))[inside].abs().max() < 0.2


# The position embedding of the tokens


@pytest.mark.parametrize("gated", [False, True], ids=["PETR", "PETRv2"])
def test_position_embeddings_equal_the_formulas_of_the_papers(gated: bool) -> None:
    """They are computed view by view, with matrices and 1x1 convolutions as in published code."""
    torch.manual_seed(0)
    channels = 16
    gate = MLP(channels, channels, channels, num_layers=2)
    position_embedding = GatedPositionEmbedding(gate) if gated else FixedPositionEmbedding()
    encoder = CameraEncoder(nn.Identity(), channels, position_embedding, stride=STRIDE)
    maps = torch.randn(2 * 6, channels, *petr.MAP)
    images = camera_images()
    with torch.no_grad():
        memory = encoder.encode(maps, images.image_to_lidar, images.elapsed)
        assert torch.equal(maps_of_views(memory.tokens).flatten(0, 1), maps)
        positions = maps_of_views(memory.position)
        for image, view in ((0, 0), (1, 4)):
            image_to_lidar = images.image_to_lidar[image, view]
            expected = apply_as_convolutions(encoder.point_embed, frustum_points(image_to_lidar))
            if gated:
                gate_logits = apply_as_convolutions(gate, maps[6 * image + view])
                expected = expected * gate_logits.sigmoid()
            sine = view_sine_embedding(view, channels // 2)
            expected = expected + apply_as_convolutions(encoder.view_embed, sine)
            assert (positions[image, view] - expected).abs().max() < 1e-5


def maps_of_views(tokens: Tensor) -> Tensor:
    """Return tokens [B,V*H*W,C] as maps [B,V,C,H,W]."""
    return tokens.unflatten(1, (6, *petr.MAP)).permute(0, 1, 4, 2, 3)


def apply_as_convolutions(mlp: MLP, x: Tensor) -> Tensor:
    """Apply a two-layer MLP to a map by 1x1 convolutions: [C,H,W] -> [C',H,W]."""
    first, last = mlp.layers
    hidden = F.conv2d(x[None], first.weight[..., None, None], first.bias).relu()
    return F.conv2d(hidden, last.weight[..., None, None], last.bias)[0]


def frustum_points(image_to_lidar: Tensor) -> Tensor:
    """Return the points on the ray of every token of a view, [depths*3,H,W].

    They are normalised, and passed through the inverse sigmoid.
    """
    height, width = petr.MAP
    v, u = torch.meshgrid(
        float(STRIDE) * torch.arange(height), float(STRIDE) * torch.arange(width), indexing="ij"
    )
    bounds = ((-61.2, 61.2), (-61.2, 61.2), (-10, 10))
    maps = []
    for i in range(64):
        depth = 1 + (61.2 - 1) / (64 * 65) * i * (i + 1)
        frustum = torch.stack(
            [u * depth, v * depth, torch.full_like(u, depth), torch.ones_like(u)], dim=-1
        )
        x, y, z, _ = (frustum @ image_to_lidar.T).unbind(-1)
        for coordinate, (low, high) in zip((x, y, z), bounds):
            normalised = ((coordinate - low) / (high - low)).clamp(0, 1)
            inverse = normalised.clamp(min=1e-5) / (1 - normalised).clamp(min=1e-5)
            maps.append(inverse.log())
    return torch.stack(maps)


def view_sine_embedding(view: int, channels: int) -> Tensor:
    """Return the sine embedding of one of six views, [3*channels,H,W].

    For each axis (view, row, column), all sines come before all cosines.
    """
    embedding = torch.zeros(3 * channels, *petr.MAP)
    height, width = petr.MAP
    half = channels // 2
    for row, column in product(range(height), range(width)):
        axes = ((view, 6), (row, height), (column, width))
        for axis, (index, size) in enumerate(axes):
            for k in range(half):
                angle = (index + 1) / (size + 1e-6) * 2 * math.pi / 10000 ** (2 * k / channels)
                embedding[axis * channels + k, row, column] = math.sin(angle)
                embedding[axis * channels + half + k, row, column] = math.cos(angle)
    return embedding
