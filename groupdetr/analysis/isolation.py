"""Isolation of groups: differences that must be zero if every group is a detector of its own.

`isolation` measures any function of queries, for example the decoder of your own DETR, and any
whole model (`module_isolation`). `measure` measures a detector of this library.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, overload

import torch
from torch import Tensor, nn

from groupdetr.analysis.group_changes import TOLERANCE, absolute_difference, other_values
from groupdetr.analysis.module_isolation import ModuleIsolation, module_isolation
from groupdetr.analysis.query_batch_norms import (
    fixed_batch_norms,
    norm_of_queries,
    reason_to_refuse,
)
from groupdetr.engine.inference import use_group
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.structures.camera_images import CameraImages
from groupdetr.structures.images import Images
from groupdetr.structures.predictions import Predictions
from groupdetr.structures.queries import Queries
from groupdetr.structures.tensor_dataclass import require, require_count

# What a module returns: tensors, also inside of lists, tuples and dictionaries.
Tensors = Tensor | Sequence["Tensors"] | Mapping[str, "Tensors"]


@dataclass(frozen=True)
class Isolation:
    """Maximum absolute differences of the outputs. All are zero but for rounding.

    A difference is infinite if an output is NaN. The outputs of a detector are logits, box
    coordinates and mask embeddings. `isolation` returns one:

    >>> groupdetr.Isolation(leak=1e-7, separate_passes=0.2).holds
    False
    """

    # Change of the other groups when the queries of one group are changed. `isolation` changes the
    # queries of one image, and also measures the other images.
    leak: float
    separate_passes: float  # of all groups in one pass, and each group in a pass of its own

    @property
    def holds(self) -> bool:
        """True if all differences are within `TOLERANCE`."""
        return self.leak < TOLERANCE and self.separate_passes < TOLERANCE


@dataclass(frozen=True)
class DetectorIsolation(Isolation):
    """The isolation of a detector of this library, which decides by itself which groups run."""

    inference: float  # of the output of inference, and the primary group in training

    @property
    def holds(self) -> bool:
        """True if all differences are within `TOLERANCE`."""
        return super().holds and self.inference < TOLERANCE


# Any module


@overload
def isolation(
    forward: Callable[..., Tensors], queries: Tensor | Sequence[Tensor], num_groups: int
) -> Isolation: ...


@overload
def isolation(
    forward: nn.Module,
    queries: str | Sequence[str] | None = None,
    num_groups: int = 0,
    *,
    inputs: Any,
) -> ModuleIsolation: ...


def isolation(
    forward: Callable[..., Tensors],
    queries: Tensor | Sequence[Tensor] | str | Sequence[str] | None = None,
    num_groups: int = 0,
    *,
    inputs: Any = None,
) -> Isolation | ModuleIsolation:
    """Return the isolation of the K groups of a function of queries, or of a whole model.

    **A whole model.** ``forward`` is any `nn.Module`, and ``inputs`` are example inputs of it, of
    two images or more: a tuple of arguments, a dictionary of keyword arguments, or one argument.
    ``queries`` names the parameters or embeddings with K*N rows, group after group, or the inputs
    [B,K*N,.] that are the queries. It may be left out if only they can be. The result is a
    `ModuleIsolation`. It names the first module of the forward pass that leaks.

    Hooks replace the queries, so nothing of the model has to be written anew. First, the rows of
    one group are replaced at a time. Then the queries of one group of one image are replaced at a
    time where they enter the first module, such as the decoder, and last the pixels of one image at
    a time. No other group and no other image may change. The model runs in the mode that it is in,
    with the same random numbers in every pass, so dropout may be on. A model of
    `groupdetr.huggingface` runs one group in evaluation mode, so it is measured in training mode.
    Modes, weights, buffers and random numbers stay as they are. It takes (B + 1) * K + B + 6
    passes.

    **A function of queries**, such as a decoder. ``forward`` takes queries [B,K*N,.], or several
    such tensors, for example content and reference points. They are the arguments of ``forward`` in
    the same order. It returns one or more tensors [...,B,K*N,.], for example logits and boxes of
    all layers, also in lists or dictionaries. Everything else that it needs, such as the encoded
    images, it holds itself. ``num_groups`` is K. The groups follow each other: group 0 has the
    first N queries. Dropout must be off, so call ``model.eval()`` before. A batch norm of queries
    must be in the mode that it has in training.

    The queries of every group of every image are replaced by others, one group of one image at a
    time, and no other group and no other image may change. Values within [0,1] stay within it, so
    they remain valid points and boxes. Then every group runs in a pass of its own, [B,N,.], as at
    inference. That is B * K + K + 3 calls of ``forward``.

    `ValueError` if the measurement would prove nothing: there are fewer than two groups or two
    images, an output has another shape or is not finite, two passes with the same queries differ,
    the outputs do not depend on the queries, or a batch norm of queries that is trained is in
    evaluation mode, in which its leak is not seen. For a whole model, also if it is not clear what
    its queries are.

    A decoder in which all queries attend to each other is not isolated:

    >>> layer = torch.nn.TransformerDecoderLayer(d_model=32, nhead=4, batch_first=True)
    >>> decoder = torch.nn.TransformerDecoder(layer, num_layers=2).eval()
    >>> memory = torch.rand(2, 48, 32)  # of two images
    >>> queries = torch.rand(1, 3 * 20, 32).expand(2, -1, -1)  # K = 3, N = 20
    >>> groupdetr.isolation(lambda x: decoder(x, memory), queries, num_groups=3).holds
    False
    """
    require(callable(forward), f"forward must be a function, not {type(forward).__name__}")
    if inputs is not None:
        require(
            isinstance(forward, nn.Module),
            f"inputs are those of an nn.Module, and forward is a {type(forward).__name__}",
        )
        assert isinstance(forward, nn.Module)
        names = [queries] if isinstance(queries, str) else [*(queries or ())]
        require(
            all(isinstance(name, str) for name in names),
            "with inputs, queries must be the names of parameters or inputs of the model",
        )
        return module_isolation(forward, inputs, num_groups, [str(name) for name in names])
    require(
        queries is not None and not isinstance(queries, str),
        "queries must be one or more tensors [B,K*N,.], and there is none; a whole model is "
        "measured with inputs=...",
    )
    assert queries is not None
    tensors = [queries] if isinstance(queries, Tensor) else [*queries]
    return _function_isolation(forward, tensors, num_groups)


@torch.no_grad()
def _function_isolation(
    forward: Callable[..., Tensors], inputs: Sequence[Any], num_groups: int
) -> Isolation:
    """Return the isolation of the groups of a function of queries."""
    _require_flat_groups(inputs, num_groups)

    def run(changed: Sequence[Tensor], groups_at_once: int) -> list[Tensor]:
        """Return all outputs of ``forward`` as [...,B,K,N,.]."""
        outputs = [*_tensors(forward(*changed))]
        require(bool(outputs), "forward must return at least one tensor")
        for output in outputs:
            images_and_queries = changed[0].shape[:2]
            require(
                output.shape[-3:-1] == images_and_queries,
                f"forward must return tensors [...,B,K*N,.] with B,K*N = {list(images_and_queries)}"
                f" for as many queries, not {list(output.shape)}",
            )
            require(bool(output.isfinite().all()), "an output of forward is not finite")
        return [output.unflatten(-2, (groups_at_once, -1)) for output in outputs]

    with fixed_batch_norms() as norms_before:
        before = run(inputs, num_groups)
    require(
        max(_differences(before, run(inputs, num_groups))) < TOLERANCE,
        "two passes with the same queries differ; turn off dropout: call model.eval() before",
    )

    # Change the queries of one group of one image at a time.
    replaced = [other_values(x) for x in inputs]
    with fixed_batch_norms() as norms_after:
        run(replaced, num_groups)
    norm = norm_of_queries(norms_before, norms_after, TOLERANCE)
    if norm is not None:
        raise ValueError(
            f"{reason_to_refuse(norm)}; put it in training mode, or freeze it by "
            "requires_grad_(False) if it is frozen in training, too"
        )
    leak = 0.0
    for image in range(len(inputs[0])):
        for group in range(num_groups):
            selected = _select(inputs[0], image, group, num_groups)
            changed = [torch.where(selected, y, x) for x, y in zip(inputs, replaced)]
            own_change, change_of_others = 0.0, 0.0
            for x, y in zip(before, run(changed, num_groups)):
                change = absolute_difference(x, y)
                own_change = max(own_change, float(change[..., image, group, :, :].max()))
                change[..., image, group, :, :] = 0
                change_of_others = max(change_of_others, float(change.max()))
            require(
                own_change > TOLERANCE,
                "the outputs do not depend on the queries: other queries in group "
                f"{group} of image {image} change its outputs by {own_change:.1e}; "
                "forward must use its arguments",
            )
            leak = max(leak, change_of_others)

    # Run every group in a pass of its own.
    separate_passes = 0.0
    for group in range(num_groups):
        single_inputs = [x.unflatten(1, (num_groups, -1))[:, group] for x in inputs]
        for x, single in zip(before, run(single_inputs, 1)):
            difference = absolute_difference(x[..., group : group + 1, :, :], single)
            separate_passes = max(separate_passes, float(difference.max()))
    return Isolation(leak=leak, separate_passes=separate_passes)


def _require_flat_groups(queries: Sequence[Tensor], num_groups: int) -> None:
    """Raise `ValueError` unless all tensors are [B,K*N,.] with at least two groups and images."""
    require_count("num_groups", num_groups)
    require(num_groups >= 2, f"with {num_groups} groups there is nothing to isolate: use 2 or more")
    for x in queries:
        require(
            isinstance(x, Tensor) and x.is_floating_point(),
            "queries must be tensors [B,K*N,.] of floating-point numbers, "
            f"not {x.dtype if isinstance(x, Tensor) else type(x).__name__}",
        )
    require(len(queries) > 0, "queries must be one or more tensors [B,K*N,.], and there is none")
    shapes = ", ".join(str(list(x.shape)) for x in queries)
    require(
        len({x.shape[:2] for x in queries}) == 1 and all(x.ndim == 3 for x in queries),
        f"queries must be [B,K*N,.], not {shapes}; for the queries of an nn.Embedding, "
        "use weight.expand(B, -1, -1)",
    )
    num_images, num_queries, _ = queries[0].shape
    require(
        num_images >= 2,
        "use queries of 2 images or more: with one image, groups that are mixed up with images "
        "are not noticed",
    )
    require(
        num_queries % num_groups == 0,
        f"{num_queries} queries cannot be split into {num_groups} groups of equal size",
    )


def _select(queries: Tensor, image: int, group: int, num_groups: int) -> Tensor:
    """Return [B,K*N,1] bool, True for the queries of one group of one image."""
    num_images, num_queries, _ = queries.shape
    shape = (num_images, num_groups, num_queries // num_groups, 1)
    selected = torch.zeros(shape, dtype=torch.bool, device=queries.device)
    selected[image, group] = True
    return selected.flatten(1, 2)


def _tensors(outputs: Tensors) -> Iterator[Tensor]:
    """Yield all tensors of nested lists, tuples and dictionaries."""
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, Mapping):
        for value in outputs.values():
            yield from _tensors(value)
    elif isinstance(outputs, Sequence) and not isinstance(outputs, str):
        for value in outputs:
            yield from _tensors(value)
    else:
        raise ValueError(
            "forward must return tensors, or lists or dictionaries of them, "
            f"not {type(outputs).__name__}"
        )


def _differences(outputs: Sequence[Tensor], others: Sequence[Tensor]) -> list[float]:
    """Return the maximum absolute difference of each pair of tensors, infinity for NaN."""
    pairs = zip(outputs, others, strict=True)
    return [float(absolute_difference(x, y).max()) for x, y in pairs]


# Detectors of this library


def measure(model: DetectionTransformer, side: int = 96) -> DetectorIsolation:
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
    return DetectorIsolation(leak=max(leaks), separate_passes=max(differences), inference=inference)


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
    return max(_differences(a.query_tensors(), b.query_tensors()))
