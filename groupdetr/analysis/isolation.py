"""Do groups leak into each other? Three measurements that must all be zero, of any detector of this library."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from groupdetr.engine.inference import running
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.structures.images import Images
from groupdetr.structures.predictions import Predictions
from groupdetr.structures.queries import Queries

TOLERANCE = (
    1e-4  # rounding of float32: kernels may sum in another order for another number of queries
)


@dataclass(frozen=True)
class Isolation:
    """The largest change of any logit, and of any box coordinate or number that a mask is told by."""

    leak: float  # in other groups, when the queries of one are changed
    apart: float  # between all groups in one training pass and each by itself
    inference: float  # between the answer at inference and the primary group in training

    @property
    def holds(self) -> bool:
        return max(self.leak, self.apart, self.inference) < TOLERANCE


def measure(model: DetectionTransformer, side: int = 96) -> Isolation:
    """Run the detector on noise of two sizes, padded. Its weights and mode are as before afterwards."""
    images = model.recipe.noise(side).to(next(model.parameters()).device)
    with torch.inference_mode(), _as_trained(model):
        together = model(images).layers[-1]
        groups = together.logits.shape[1]
        leak = max((_leak(model, images, together, group) for group in range(groups)), default=0.0)
        model.eval()
        alone = [_alone(model, images, group) for group in range(groups)]
        primary = model.recipe.inference_group or 0
        inference = _change(alone[primary], together[:, primary : primary + 1])
        apart = max(
            _change(alone[group], together[:, group : group + 1]) for group in range(groups)
        )
    return Isolation(leak, apart, inference)


@contextmanager
def _as_trained(model: DetectionTransformer) -> Iterator[None]:
    """All groups, as in training, but nothing that draws anew in every pass (dropout, stochastic depth): its noise
    would hide what is looked for."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    model.queries.train()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _leak(model: DetectionTransformer, images: Images, before: Predictions, group: int) -> float:
    """What changes elsewhere when the queries of ``group`` do."""
    with model.queries.register_forward_hook(lambda *call: _moved(call[-1], group)):
        after = model(images).layers[-1]
    others = [k for k in range(before.logits.shape[1]) if k != group]
    return _change(before[:, others], after[:, others]) if others else 0.0


def _moved(queries: Queries, group: int) -> Queries:
    """The same but for one group, which knows something else, looks elsewhere, and has another position."""
    content, reference = queries.content.clone(), queries.reference.clone()
    content[:, group] += 1.0
    reference[:, group] = 1 - reference[:, group]
    position = None if queries.position is None else queries.position.clone()
    if position is not None:
        position[:, group] += 1.0
    return replace(queries, content=content, reference=reference, position=position)


def _alone(model: DetectionTransformer, images: Images, group: int) -> Predictions:
    """One group at inference."""
    with running(model, group):
        return model(images).layers[-1]


def _change(a: Predictions, b: Predictions) -> float:
    return max(float((x - y).abs().max()) for x, y in ((a.logits, b.logits), (a.place, b.place)))
