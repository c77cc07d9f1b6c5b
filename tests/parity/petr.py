"""Inputs of the published PETR and PETRv2: weights, cameras, feature maps and objects by rule.

There are two rules for weights and feature maps. With "sines", the positions of tokens hardly
influence the predictions. With "noise", everything does.
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

IMAGE, MAP = (64, 160), (4, 10)  # height and width of a view, in pixels and in tokens
AZIMUTHS = (90.0, 34.0, 146.0, -90.0, -160.0, -20.0)  # viewing directions of cameras, in degrees
FOCAL = (126.0, 126.0, 126.0, 80.0, 126.0, 126.0)  # pixels
ELAPSED = (0.5, 0.75)  # seconds between the frames of the two scenes
# Position of earlier cameras: metres to the right, and metres per second ahead.
MOVED = (0.2, -4.0)

# Centre x, y, z; width, length, height; encoded angle (not yaw); velocity x, y.
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
    """Return a weight whose values follow from its name.

    Norms are near one and biases small. The wider a matrix, the smaller its values.
    """
    shape = tuple(shape)
    count = math.prod(shape)
    name = name.removeprefix("pts_bbox_head.")
    seed = zlib.crc32(name.encode())
    if name == "reference_points.weight":
        values = 0.5 + 0.45 * sines(count, seed) if rule == "sines" else uniform(count, seed)
    elif len(shape) > 1:
        fan_in = math.sqrt(count / shape[0])
        if rule == "sines":
            values = sines(count, seed) * 1.5 / fan_in
        else:
            values = 1.4 * noise(count, seed) / fan_in
    else:
        values = 0.1 * (sines(count, seed) if rule == "sines" else noise(count, seed))
        if is_norm(name) and name.endswith("weight"):
            values = values + 1
    return values.float().reshape(shape)


def sines(count: int, seed: int) -> Tensor:
    return torch.sin(0.37 * torch.arange(count, dtype=torch.float64) + seed % 1000)


def noise(count: int, seed: int) -> Tensor:
    """Return normal noise of a generator that numpy promises never to change."""
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(count))


def uniform(count: int, seed: int) -> Tensor:
    """Return points of which some are outside of the space, as training leaves them."""
    return torch.from_numpy(np.random.RandomState(seed).uniform(-0.1, 1.1, count))


def is_norm(name: str) -> bool:
    parts = name.split(".")
    return "norm" in name or (parts[0] == "cls_branches" and parts[2] in ("1", "4"))


def cameras(frames: int) -> Tensor:
    """Return the projections from lidar frame to image of six cameras per frame, [2,V,4,4] float64.

    V is 6 * frames.
    """
    scenes = []
    for seconds in ELAPSED:
        views = [projection(i, frame * seconds) for frame in range(frames) for i in range(6)]
        scenes.append(torch.stack(views))
    return torch.stack(scenes)


def projection(i: int, age: float) -> Tensor:
    """Return the projection [4,4] of camera ``i``, ``age`` seconds ago. It looks horizontally."""
    angle = math.radians(AZIMUTHS[i])
    x = 0.1 * i + MOVED[0] * (age > 0)
    position = torch.tensor([x, 0.7 + MOVED[1] * age, -0.3]).double()
    right = (math.sin(angle), -math.cos(angle), 0.0)
    down = (0.0, 0.0, -1.0)
    ahead = (math.cos(angle), math.sin(angle), 0.0)
    rotation = torch.tensor([right, down, ahead]).double()
    focal_length = FOCAL[i]
    intrinsic = torch.tensor(
        [[focal_length, 0.0, 80.0], [0.0, focal_length, 32.0], [0.0, 0.0, 1.0]]
    ).double()
    matrix = torch.eye(4).double()
    matrix[:3, :3] = intrinsic @ rotation
    matrix[:3, 3] = -intrinsic @ rotation @ position
    return matrix


def images(frames: int) -> CameraImages:
    """Return the images of two scenes. Their pixels are zero: features replace them."""
    pixels = torch.zeros(2, 6 * frames, 3, *IMAGE)
    return CameraImages.from_projections(pixels, cameras(frames).float(), torch.tensor(ELAPSED))


def features(frames: int, rule: str) -> Tensor:
    """Return the feature map that replaces that of the neck, [B*V,256,H,W]."""
    shape = (12 * frames, 256, *MAP)
    count = math.prod(shape)
    if rule == "sines":
        values = torch.sin(0.013 * torch.arange(count, dtype=torch.float64))
    else:
        values = noise(count, 0)
    return values.float().reshape(shape)


def targets() -> list[Target]:
    return [Target(torch.tensor(labels), boxes(rows)) for labels, rows in zip(LABELS, OBJECTS)]


def boxes(rows: Iterable[tuple[float, ...]]) -> Tensor:
    """Return boxes with yaw in place of the encoded angle."""
    table = torch.tensor([*rows])
    table[:, 6] = -table[:, 6] - math.pi / 2
    return table
