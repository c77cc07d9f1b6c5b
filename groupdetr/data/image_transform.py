"""Scale and shift of image coordinates: where augmentation moves the points of an image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ImageTransform:
    """Moves a point (x, y) of the image on disk, in pixels, to ``scale * (x, y) + shift``.

    The first pixel covers 0 to 1. A negative scale of x is a horizontal flip.
    """

    scale: tuple[float, float] = (1.0, 1.0)  # of x and y
    shift: tuple[float, float] = (0.0, 0.0)  # of x and y, pixels

    def followed_by(
        self, scale: tuple[float, float] = (1.0, 1.0), shift: tuple[float, float] = (0.0, 0.0)
    ) -> ImageTransform:
        """Return the transform that applies this one and then ``scale`` and ``shift``."""
        scale_x = self.scale[0] * scale[0]
        scale_y = self.scale[1] * scale[1]
        shift_x = self.shift[0] * scale[0] + shift[0]
        shift_y = self.shift[1] * scale[1] + shift[1]
        return ImageTransform((scale_x, scale_y), (shift_x, shift_y))

    def apply(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Move points [...,2] of the image on disk."""
        return points * self.scale + self.shift
