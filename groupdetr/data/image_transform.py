"""Where the transforms of a picture put what is in it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Placement:
    """A point x, y of the picture on disk, in pixels, is now at ``scale * (x, y) + shift``.

    The first pixel reaches from 0 to 1. A negative scale of x says that left is right.
    """

    scale: tuple[float, float] = (1.0, 1.0)  # of x and y
    shift: tuple[float, float] = (0.0, 0.0)  # pixels

    def then(
        self, scale: tuple[float, float] = (1.0, 1.0), shift: tuple[float, float] = (0.0, 0.0)
    ) -> Placement:
        """Followed by another one."""
        return Placement(
            (self.scale[0] * scale[0], self.scale[1] * scale[1]),
            (self.shift[0] * scale[0] + shift[0], self.shift[1] * scale[1] + shift[1]),
        )

    def of(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Points [...,2] of the picture on disk, where they are now."""
        return points * self.scale + self.shift
