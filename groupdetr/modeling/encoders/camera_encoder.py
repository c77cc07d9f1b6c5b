"""PETR's encoder: tokens of several cameras with 3D position embeddings.

(Liu et al., ECCV 2022, Sec. 3.2)
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from groupdetr.modeling.encoders.encoder import Encoder
from groupdetr.modeling.mlp import MLP
from groupdetr.modeling.position_embedding import PositionEmbedding
from groupdetr.ops.boxes import inverse_sigmoid
from groupdetr.ops.position import views_embedding
from groupdetr.structures.camera_images import CameraImages
from groupdetr.structures.memory import SceneMemory

NEAREST = 1.0  # depth of the first point on a ray, in metres
FARTHEST = 61.2  # bound of the depths, in metres
NUM_DEPTHS = 64  # points on a ray
# Lower and upper bounds of the embedded 3D space: x, y and z in metres. It is `position_range` in
# PETR's code.
SPACE_LOW = (-61.2, -61.2, -10.0)
SPACE_HIGH = (61.2, 61.2, 10.0)
EPS = 1e-5  # of the inverse sigmoid


class CameraEncoder(Encoder[CameraImages]):
    """Feature maps [B*V,C_l,H_l,W_l] of all views -> `SceneMemory`.

    ``neck`` merges the feature maps into one of the given ``stride``. ``position_embedding`` is
    applied to the embedding of the 3D points on a token's ray: a `FixedPositionEmbedding` or a
    `GatedPositionEmbedding`. As in the published code, the encoder computes in the float32 of its
    weights under any autocast, because coordinates in metres need that precision.
    """

    images_type: ClassVar[type[CameraImages]] = CameraImages

    depths: Tensor
    low: Tensor
    extent: Tensor

    def __init__(
        self, neck: nn.Module, channels: int, position_embedding: PositionEmbedding, stride: int
    ) -> None:
        super().__init__()
        self.neck = neck
        self.position_embedding = position_embedding
        self.stride = stride
        self.projection = nn.Conv2d(channels, channels, kernel_size=1)
        self.point_embed = MLP(3 * NUM_DEPTHS, 4 * channels, channels, num_layers=2)
        self.view_embed = MLP(3 * channels // 2, 4 * channels, channels, num_layers=2)
        self.register_buffer("depths", ray_depths(), persistent=False)
        low = torch.tensor(SPACE_LOW)
        extent = torch.tensor(SPACE_HIGH) - low
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("extent", extent, persistent=False)

    def forward(self, features: list[Tensor], images: CameraImages) -> SceneMemory:
        with torch.autocast(images.elapsed.device.type, enabled=False):
            maps = self.neck([x.to(self.projection.weight.dtype) for x in features])
            return self.encode(self.projection(maps), images.image_to_lidar, images.elapsed)

    def encode(self, projected: Tensor, image_to_lidar: Tensor, elapsed: Tensor) -> SceneMemory:
        """Encode a projected map [B*V,C,H,W].

        ``image_to_lidar`` [B,V,4,4] and ``elapsed`` [B] as in `CameraImages`.
        """
        by_view = projected.unflatten(0, image_to_lidar.shape[:2])
        tokens = by_view.permute(0, 1, 3, 4, 2)  # [B,V,H,W,C]
        _, views, height, width, channels = tokens.shape
        points = self.frustum_points(image_to_lidar, height, width).to(tokens.dtype)
        sine = views_embedding((views, height, width), channels // 2, tokens.device)
        view_embedding = self.view_embed(sine.to(tokens.dtype))
        position = self.position_embedding(self.point_embed(points), tokens) + view_embedding
        tokens, position = tokens.flatten(1, 3), position.flatten(1, 3)
        return SceneMemory.from_tokens(
            tokens=tokens,
            position=position,
            padding=torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device),
            shapes=((views * height, width),),
            padded=False,
            elapsed=elapsed,
        )

    def frustum_points(self, image_to_lidar: Tensor, height: int, width: int) -> Tensor:
        """Return the 3D points on the ray of every token, [B,V,H,W,3*NUM_DEPTHS].

        They are normalised to [0,1] of the embedded space and passed through the inverse sigmoid.
        As in the published code, the position of a token is that of its left upper corner.
        """
        device = image_to_lidar.device
        v = torch.arange(height, device=device).unsqueeze(-1) * self.stride
        u = torch.arange(width, device=device).unsqueeze(-1) * self.stride
        # Columns of the matrix: what a point moves per unit of u*d, of v*d and of d, and the
        # position of the camera.
        by_u, by_v, by_depth, camera = (image_to_lidar[:, :, None, None, :3, i] for i in range(4))
        ray = by_u * u + by_v * v.unsqueeze(1) + by_depth  # [B,V,H,W,3] for a depth of one metre
        points = ray.unsqueeze(-2) * self.depths.unsqueeze(-1) + camera.unsqueeze(-2)
        return inverse_sigmoid((points - self.low) / self.extent, EPS).flatten(-2)


def ray_depths() -> Tensor:
    """Return the depths of the points on a ray, [NUM_DEPTHS] in metres.

    The distance between neighbouring points grows linearly with their index.

    This is the linear-increasing discretisation of CaDDN (Reading et al. 2021). The last depth is
    smaller than `FARTHEST`.
    """
    steps = torch.arange(NUM_DEPTHS).float()
    first_step = (FARTHEST - NEAREST) / (NUM_DEPTHS * (NUM_DEPTHS + 1))
    return NEAREST + first_step * steps * (steps + 1)
