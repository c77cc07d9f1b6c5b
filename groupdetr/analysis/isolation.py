"""Isolation of groups: three differences that must be zero for every detector of this library."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from groupdetr.engine.inference import use_group
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.structures.camera_images import CameraImages
from groupdetr.structures.images import Images
from groupdetr.structures.predictions import Predictions
from groupdetr.structures.queries import Queries

# Rounding of float32: for another number of queries, kernels may sum in another order.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Isolation:
    """Three maximum absolute differences of logits, box coordinates and mask embeddings."""

    leak: float  # change of the other groups when the queries of one group are changed
    apart: float  # difference of all groups in one pass and each group in a pass of its own
    inference: float  # difference of the output of inference and the primary group in training

    @property
    def holds(self) -> bool:
        """True if all differences are within `TOLERANCE`."""
        return max(self.leak, self.apart, self.inference) < TOLERANCE


def measure(model: DetectionTransformer, side: int = 96) -> Isolation:
    """Return the isolation of the groups of a detector on padded noise images of two sizes.

    The weights of the detector do not change, and its training or evaluation mode is restored.
    """
    images = model.recipe.example_images(side).to(next(model.parameters()).device)
    with torch.inference_mode(), _all_groups_without_dropout(model):
        all_groups = model(images).layers[-1]
        num_groups = all_groups.logits.shape[1]
        leaks = [_leak(model, images, all_groups, group) for group in range(num_groups)]

        model.eval()
        single_groups = [_single_group(model, images, group) for group in range(num_groups)]
        differences = []
        for group, single in enumerate(single_groups):
            differences.append(_max_difference(single, all_groups[:, group : group + 1]))
        # The primary group is the one that inference uses.
        primary = model.recipe.inference_group or 0
        inference = _max_difference(single_groups[primary], all_groups[:, primary : primary + 1])
    return Isolation(leak=max(leaks), apart=max(differences), inference=inference)


@contextmanager
def _all_groups_without_dropout(model: DetectionTransformer) -> Iterator[None]:
    """Run all groups as in training, but without dropout and stochastic depth.

    These draw new random numbers in every pass, and their noise would hide the differences.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    model.queries.train()  # Only the query source decides which groups run.
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _leak(
    model: DetectionTransformer, images: Images | CameraImages, before: Predictions, group: int
) -> float:
    """Return the change of the other groups when the queries of ``group`` are changed."""

    def change_queries(module: nn.Module, args: tuple[object, ...], queries: Queries) -> Queries:
        return _perturb(queries, group)

    with model.queries.register_forward_hook(change_queries):
        after = model(images).layers[-1]
    others = [k for k in range(before.logits.shape[1]) if k != group]
    return _max_difference(before[:, others], after[:, others]) if others else 0.0


def _perturb(queries: Queries, group: int) -> Queries:
    """Change content, reference and position of the queries of one group."""
    content = queries.content.clone()
    content[:, group] += 1.0
    reference = queries.reference.clone()
    reference[:, group] = 1 - reference[:, group]
    position = queries.position
    if position is not None:
        position = position.clone()
        position[:, group] += 1.0
    return replace(queries, content=content, reference=reference, position=position)


def _single_group(
    model: DetectionTransformer, images: Images | CameraImages, group: int
) -> Predictions:
    """Return the predictions [B,1,N,.] of one group at inference."""
    with use_group(model, group):
        return model(images).layers[-1]


def _max_difference(a: Predictions, b: Predictions) -> float:
    def difference(x: Tensor, y: Tensor) -> float:
        return float((x - y).abs().max())

    return max(difference(a.logits, b.logits), difference(a.location, b.location))
