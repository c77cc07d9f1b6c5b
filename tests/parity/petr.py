"""What the published PETR and PETRv2 were asked, by rule: weights, cameras, feature maps and objects.

Of weights and maps there are two rules. With sines positions of tokens hardly show in the answers; with noise all does.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from groupdetr.structures.camera_images import CameraImages
from groupdetr.structures.targets import Target

IMAGE, MAP = (64, 160), (4, 10)  # pixels, and tokens of a view
AZIMUTHS = (90.0, 34.0, 146.0, -90.0, -160.0, -20.0)  # degrees: where the cameras look
FOCAL = (126.0, 126.0, 126.0, 80.0, 126.0, 126.0)  # pixels
ELAPSED = (0.5, 0.75)  # seconds, of the two scenes
MOVED = (
    0.2,
    -4.0,
)  # earlier cameras are so many metres to the right, and so many metres per second ahead

# x,y,z of the centre, width, length, height, angle of the code (not yaw), velocity
OBJECTS = (
    (
        (10.0, 5.0, -1.0, 1.9, 4.6, 1.7, 0.3, 1.0, -2.0),
        (-20.0, 30.0, -0.5, 2.5, 7.0, 3.0, -2.0, 0.0, 0.0),
        (3.0, -8.0, -1.0, 0.7, 0.7, 1.8, 1.1, 0.4, 0.3),
    ),
    ((0.0, 12.0, -1.0, 0.6, 1.7, 1.3, 3.0, 0.0, 1.0),),
)
LABELS = ((0, 1, 8), (7,))


def weight(name: str, shape: Iterable[int], rule: str) -> Tensor:
    """Of their name: sines or noise, near one in norms and small in biases, in matrices the smaller the wider."""
    shape = tuple(shape)
    count = math.prod(shape)
    name = name.removeprefix("pts_bbox_head.")
    seed = zlib.crc32(name.encode())
    if name == "reference_points.weight":
        values = 0.5 + 0.45 * sines(count, seed) if rule == "sines" else uniform(count, seed)
    elif len(shape) > 1:
        wide = math.sqrt(count / shape[0])
        values = (
            sines(count, seed) * 1.5 / wide if rule == "sines" else 1.4 * noise(count, seed) / wide
        )
    else:
        values = 0.1 * (sines if rule == "sines" else noise)(count, seed) + (
            is_norm(name) and name.endswith("weight")
        )
    return values.float().reshape(shape)


def sines(count: int, seed: int) -> Tensor:
    return torch.sin(0.37 * torch.arange(count, dtype=torch.float64) + seed % 1000)


def noise(count: int, seed: int) -> Tensor:
    """Of a generator that numpy promises never to change."""
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(count))


def uniform(count: int, seed: int) -> Tensor:
    """Some of them beyond the space that is looked at, as training leaves them."""
    return torch.from_numpy(np.random.RandomState(seed).uniform(-0.1, 1.1, count))


def is_norm(name: str) -> bool:
    branch = name.split(".")
    return "norm" in name or (branch[0] == "cls_branches" and branch[2] in ("1", "4"))


def cameras(moments: int) -> Tensor:
    """What projects points of the lidar's frame on the six images of every moment, [2,V,4,4] float64."""
    ages = [[moment * seconds for moment in range(moments)] for seconds in ELAPSED]
    return torch.stack(
        [torch.stack([projection(i, age) for age in scene for i in range(6)]) for scene in ages]
    )


def projection(i: int, age: float) -> Tensor:
    """Of one camera, which looks level: [4,4]."""
    angle = math.radians(AZIMUTHS[i])
    place = torch.tensor([0.1 * i + MOVED[0] * (age > 0), 0.7 + MOVED[1] * age, -0.3]).double()
    right, down = (math.sin(angle), -math.cos(angle), 0.0), (0.0, 0.0, -1.0)
    turn = torch.tensor([right, down, (math.cos(angle), math.sin(angle), 0.0)]).double()
    lens = torch.tensor([[FOCAL[i], 0.0, 80.0], [0.0, FOCAL[i], 32.0], [0.0, 0.0, 1.0]]).double()
    matrix = torch.eye(4).double()
    matrix[:3, :3], matrix[:3, 3] = lens @ turn, -lens @ turn @ place
    return matrix


def images(moments: int) -> CameraImages:
    """Of two scenes; the pixels are of no account."""
    pixels = torch.zeros(2, 6 * moments, 3, *IMAGE)
    return CameraImages.seen_through(pixels, cameras(moments).float(), torch.tensor(ELAPSED))


def features(moments: int, rule: str) -> Tensor:
    """What stands in for the neck's map: [B*V,256,H,W]."""
    shape = (12 * moments, 256, *MAP)
    count = math.prod(shape)
    waves = torch.sin(0.013 * torch.arange(count, dtype=torch.float64))
    return (waves if rule == "sines" else noise(count, 0)).float().reshape(shape)


def targets() -> list[Target]:
    return [Target(torch.tensor(labels), boxes(rows)) for labels, rows in zip(LABELS, OBJECTS)]


def boxes(rows: Iterable[tuple[float, ...]]) -> Tensor:
    table = torch.tensor([*rows])
    table[:, 6] = -table[:, 6] - math.pi / 2
    return table
