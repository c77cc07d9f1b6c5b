"""Detected 3D boxes of one scene: what a 3D detector returns to users."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Detections3D:
    """The D detections in one scene, sorted by decreasing score, in the frame of the lidar."""

    scores: Tensor  # [D] in [0,1]
    labels: Tensor  # [D] int64, contiguous class indices
    boxes: Tensor  # [D,9] 3D boxes as in `ops.boxes3d`

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: Tensor | slice) -> Detections3D:
        """Return the detections of a slice, of a tensor of indices, or of a bool for each."""
        return Detections3D(self.scores[index], self.labels[index], self.boxes[index])

    def above(self, score: float) -> Detections3D:
        """Return the detections with a score of at least ``score``."""
        return self[self.scores >= score]
