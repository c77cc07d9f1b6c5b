"""Boxes in space as pure functions of tensors: what they are, and the code that detectors say them in.

A box [...,9] is x, y, z of its centre, width, length, height, yaw, and velocity in x and y: metres, radians and
metres per second in the lidar's frame, whose z is up; yaw is that of the length, counter-clockwise from x.

Its code [...,10] is x, y, log w, log l, z, log h, sin a, cos a and the velocity, with a = -yaw - pi/2: the angle of
mmdet3d before 1.0, in which the authors of PETR trained. What mmdet3d 1.x calls PETR says log l before log w.
"""

from __future__ import annotations

import torch
from torch import Tensor

CODE = 10  # numbers of a code
CENTRE = (0, 1, 4)  # where x, y and z stand in it
VELOCITY = 8  # and where the velocity begins
LENGTH_FIRST = [
    0,
    1,
    3,
    2,
    *range(4, CODE),
]  # of our code that of mmdet3d 1.x, and the other way round


def box_to_code(boxes: Tensor) -> Tensor:
    """[...,9] -> [...,10]"""
    x, y, z, width, length, height, yaw, *velocity = boxes.unbind(-1)
    sizes = (width.log(), length.log(), z, height.log())
    return torch.stack([x, y, *sizes, -yaw.cos(), -yaw.sin(), *velocity], dim=-1)


def code_to_box(codes: Tensor) -> Tensor:
    """[...,10] -> [...,9], yaw in (-pi,pi]; sine and cosine may be of any length but zero."""
    x, y, width, length, z, height, sine, cosine, *velocity = codes.unbind(-1)
    sizes = (width.exp(), length.exp(), height.exp())
    return torch.stack([x, y, z, *sizes, torch.atan2(-cosine, -sine), *velocity], dim=-1)
