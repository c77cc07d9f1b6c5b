"""Detected 3D boxes of one scene: what a 3D detector returns to users."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Detections3D:
    """The D detections in one scene, sorted by decreasing score, in the frame of the lidar.

    >>> scores, labels, boxes = torch.tensor([0.9, 0.4]), torch.tensor([2, 0]), torch.rand(2, 9)
    >>> detections = groupdetr.Detections3D(scores, labels, boxes)
    >>> len(detections.above(0.5))
    1
    """

    scores: Tensor  # [D] in [0,1]
    labels: Tensor  # [D] int64, contiguous class indices
    # [D,9] x, y, z of the centre, width, length and height in metres, yaw in radians, velocity in x
    # and y in metres per second
    boxes: Tensor

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: Tensor | slice) -> Detections3D:
        """Return the detections of a slice, of a tensor of indices, or of a bool for each."""
        return Detections3D(self.scores[index], self.labels[index], self.boxes[index])

    def above(self, score: float) -> Detections3D:
        """Return the detections with a score of at least ``score``."""
        return self[self.scores >= score]
