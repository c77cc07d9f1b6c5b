"""Stochastic depth (Huang et al. 2016, arXiv 1603.09382)."""

from __future__ import annotations

from torch import Tensor, nn


class DropPath(nn.Module):
    """Sets the output of a residual branch [B,...] to zero in training, each of the B on its own.

    They are images, or windows of images. Each loses the branch with this ``probability``. The
    others are divided by the probability that they have it, so the mean stays the same.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        if self.probability == 0 or not self.training:
            return x
        kept = 1 - self.probability
        one_per_image = x.new_empty(x.shape[0], *[1] * (x.ndim - 1))
        return x * one_per_image.bernoulli_(kept).div_(kept)
