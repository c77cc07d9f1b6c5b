"""3D boxes and the encoding in which detectors predict them.

A box [...,9] is x, y, z of its centre, width, length, height, yaw, and the velocity in x and y. The
units are metres, radians and metres per second, in the frame of the lidar, whose z axis points up.
Yaw is the angle of the length, counter-clockwise from the x axis.

An encoded box [...,10] is x, y, log w, log l, z, log h, sin a, cos a, and the velocity in x and y,
where a = -yaw - pi/2. That is the angle of mmdet3d before version 1.0, with which the authors of
PETR trained. In mmdet3d 1.x, PETR's encoded boxes have log l before log w.
"""

from __future__ import annotations

import torch
from torch import Tensor

CODE_SIZE = 10  # numbers of an encoded box
CENTRE = (0, 1, 4)  # indices of x, y and z in an encoded box
VELOCITY = 8  # index of the first of the two velocities in an encoded box
# The order of mmdet3d 1.x: indexing our encoded box by it gives mmdet3d's, and the other way round.
LENGTH_FIRST = [0, 1, 3, 2, 4, 5, 6, 7, 8, 9]


def encode_boxes3d(boxes: Tensor) -> Tensor:
    """Encode boxes: [...,9] -> [...,10]."""
    x, y, z, width, length, height, yaw, *velocity = boxes.unbind(-1)
    # With a = -yaw - pi/2: sin a = -cos yaw, and cos a = -sin yaw.
    sine, cosine = -yaw.cos(), -yaw.sin()
    encoded = [x, y, width.log(), length.log(), z, height.log(), sine, cosine, *velocity]
    return torch.stack(encoded, dim=-1)


def decode_boxes3d(encoded: Tensor) -> Tensor:
    """Decode boxes: [...,10] -> [...,9], with yaw in (-pi,pi].

    Sine and cosine may have any common length except zero.
    """
    x, y, log_width, log_length, z, log_height, sine, cosine, *velocity = encoded.unbind(-1)
    yaw = torch.atan2(-cosine, -sine)
    boxes = [x, y, z, log_width.exp(), log_length.exp(), log_height.exp(), yaw, *velocity]
    return torch.stack(boxes, dim=-1)
