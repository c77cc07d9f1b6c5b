"""PETR's encoder (Liu et al., ECCV 2022, Sec. 3.2): tokens of several cameras that know where in space they look."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from groupdetr.modeling.mlp import MLP
from groupdetr.ops.boxes import inverse_sigmoid
from groupdetr.ops.position import views_embedding
from groupdetr.structures.scene_memory import SceneMemory

NEAREST, FARTHEST, NUM_DEPTHS = 1.0, 61.2, 64  # metres: of the points on a ray
LOW, HIGH = (
    (-61.2, -61.2, -10.0),
    (61.2, 61.2, 10.0),
)  # metres: the space in which points are told apart
EPS = 1e-5  # of the inverse sigmoid


class CameraEncoder(nn.Module):
    """Feature maps [B*V,C_l,.,.], the finest of ``stride``, and what the cameras are -> `SceneMemory`.

    ``neck`` makes one map of them. ``place`` is the position embedding of the points that a token looks at, a `Given`
    or a `Gated` one. As published, it computes in its weights' float32 under any autocast: metres need it.
    """

    depths: Tensor
    low: Tensor
    extent: Tensor

    def __init__(self, neck: nn.Module, channels: int, place: nn.Module, stride: int) -> None:
        super().__init__()
        self.neck, self.place, self.stride = neck, place, stride
        self.projection = nn.Conv2d(channels, channels, kernel_size=1)
        self.points = MLP(3 * NUM_DEPTHS, 4 * channels, channels, num_layers=2)
        self.views = MLP(3 * channels // 2, 4 * channels, channels, num_layers=2)
        self.register_buffer("depths", depths(), persistent=False)
        self.register_buffer("low", torch.tensor(LOW), persistent=False)
        self.register_buffer("extent", torch.tensor(HIGH) - torch.tensor(LOW), persistent=False)

    def forward(
        self, features: list[Tensor], image_to_lidar: Tensor, elapsed: Tensor
    ) -> SceneMemory:
        """``image_to_lidar`` [B,V,4,4] and ``elapsed`` [B] as in `CameraImages`."""
        with torch.autocast(elapsed.device.type, enabled=False):
            maps = self.neck([x.to(self.projection.weight.dtype) for x in features])
            return self.encode(self.projection(maps), image_to_lidar, elapsed)

    def encode(self, projected: Tensor, image_to_lidar: Tensor, elapsed: Tensor) -> SceneMemory:
        """Of the projected map."""
        tokens = projected.unflatten(0, image_to_lidar.shape[:2]).permute(
            0, 1, 3, 4, 2
        )  # [B,V,H,W,C]
        _, views, height, width, channels = tokens.shape
        points = self.points(self.along_rays(image_to_lidar, height, width).to(tokens.dtype))
        embedding = views_embedding((views, height, width), channels // 2, tokens.device).to(
            tokens.dtype
        )
        position = self.place(points, tokens) + self.views(embedding)
        tokens, position = tokens.flatten(1, 3), position.flatten(1, 3)
        padding = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return SceneMemory(
            tokens, position, padding, ((views * height, width),), padded=False, elapsed=elapsed
        )

    def along_rays(self, image_to_lidar: Tensor, height: int, width: int) -> Tensor:
        """The points that every pixel of a map looks at, in shares of the space before the sigmoid: [B,V,H,W,3*D].

        Pixels are where their left upper corner is.
        """
        v, u = (
            torch.arange(n, device=image_to_lidar.device).unsqueeze(-1) * self.stride
            for n in (height, width)
        )
        right, down, ahead, centre = (image_to_lidar[:, :, None, None, :3, i] for i in range(4))
        ray = right * u + down * v.unsqueeze(1) + ahead  # [B,V,H,W,3] for a metre of depth
        points = ray.unsqueeze(-2) * self.depths.unsqueeze(-1) + centre.unsqueeze(-2)
        return inverse_sigmoid((points - self.low) / self.extent, EPS).flatten(-2)


def depths() -> Tensor:
    """Of the points on a ray, the farther the sparser (CaDDN, Reading et al. 2021): [D] metres, the last one short of
    the farthest."""
    steps = torch.arange(NUM_DEPTHS).float()
    return NEAREST + (FARTHEST - NEAREST) / (NUM_DEPTHS * (NUM_DEPTHS + 1)) * steps * (steps + 1)
