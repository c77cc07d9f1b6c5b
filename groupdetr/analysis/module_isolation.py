"""Isolation of the groups of a whole model of any origin, measured by hooks.

The queries of a model are its parameters with K*N rows, or its inputs. First, the rows of one group
are replaced at a time. Then the queries of one group of one image are replaced at a time, where
they first enter a module with an axis of images, such as the decoder. Every other group and every
other image must keep its outputs. Last, the pixels of one image are replaced at a time, and no
other image may change.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from groupdetr.analysis.group_changes import (
    TOLERANCE,
    Change,
    Replacement,
    absolute_difference,
    find_axes,
    find_input_axes,
    find_row_axes,
    measure_change,
    other_values,
    replace_group,
)
from groupdetr.analysis.hooked_module import (
    AfterCall,
    Argument,
    Call,
    HookedModule,
    changed_parameters,
    float_tensors,
)
from groupdetr.analysis.query_batch_norms import (
    fixed_batch_norms,
    norm_of_queries,
    reason_to_refuse,
)
from groupdetr.analysis.query_sources import OWN_PARAMETERS, MeasurementError, find_queries
from groupdetr.modeling.frozen import BATCH_NORMS
from groupdetr.structures.tensor_dataclass import require_count

# The pass that those with other pixels in one image are compared with.
NO_IMAGE = Replacement(group=None, image=None)


@dataclass(frozen=True)
class ModuleIsolation:
    """Maximum absolute changes of the outputs of a model. Both are zero but for rounding.

    `isolation` returns one for a whole model:

    >>> layer = torch.nn.TransformerDecoderLayer(d_model=32, nhead=4, batch_first=True)
    >>> decoder = torch.nn.TransformerDecoder(layer, num_layers=2)
    >>> inputs = {"tgt": torch.rand(2, 3 * 20, 32), "memory": torch.rand(2, 48, 32)}
    >>> groupdetr.isolation(decoder, num_groups=3, inputs=inputs).leaking_module
    'layers.0.self_attn (MultiheadAttention)'
    """

    leak: float  # of the other groups, when the queries of one group are replaced
    image_leak: float  # of other images, when the queries or the pixels of one image are replaced
    num_groups: int  # K
    num_queries: int  # N, the queries of a group
    # The parameters or inputs that are the queries.
    queries: tuple[str, ...]
    # The modules whose inputs were replaced for one image at a time.
    changed_inputs: tuple[str, ...]
    # The first module of the forward pass whose outputs leak, and how much they change; None if the
    # groups are isolated.
    leaking_module: str | None
    leaking_module_change: float | None

    @property
    def holds(self) -> bool:
        """True if both changes are within the rounding of 32-bit numbers."""
        return self.leak < TOLERANCE and self.image_leak < TOLERANCE


@torch.no_grad()
def module_isolation(
    module: nn.Module, inputs: Any, num_groups: int, queries: Sequence[str] = ()
) -> ModuleIsolation:
    """Return the isolation of the K groups of a model. `isolation` describes the arguments.

    `MeasurementError` if it cannot be told whether the groups are isolated.
    """
    require_count("num_groups", num_groups)
    if num_groups < 2:
        raise MeasurementError(f"with {num_groups} groups there is nothing to isolate: use 2")
    hooked = HookedModule(module, inputs)
    try:
        with _mode_of_all_groups(module):
            return _Measurement(hooked, num_groups, queries).result()
    finally:
        hooked.restore_buffers()


@contextmanager
def _mode_of_all_groups(module: nn.Module) -> Iterator[None]:
    """Put a model of `groupdetr.huggingface` in training mode, because it runs one group in eval.

    Every other model stays in the mode that it is in.
    """
    modes = [(x, x.training) for x in module.modules()]
    if hasattr(module, OWN_PARAMETERS):
        module.train()
    try:
        yield
    finally:
        for x, is_training in modes:
            x.training = is_training


@dataclass(frozen=True)
class _Argument:
    """An argument of a call that has the shape of queries."""

    sums: tuple[float, float]  # of its values and of their squares, which differ if the values do
    num_images: int


class _Measurement:
    """All passes of a model that its isolation needs."""

    def __init__(self, hooked: HookedModule, num_groups: int, names: Sequence[str]) -> None:
        self.hooked = hooked
        shapes: list[torch.Size] = []

        def note_shapes(_: Call, output: Any) -> None:
            shapes.extend(x.shape for x in float_tensors(output))

        output = hooked.run(after_call=note_shapes)
        output_shapes = [x.shape for x in float_tensors(output)]
        self.queries = find_queries(hooked, num_groups, names, output_shapes, shapes)
        self.sizes = self.queries.sizes
        # A model that returns only its loss is measured by the outputs of its modules.
        self.measures_modules = not any(find_axes(shape, self.sizes) for shape in output_shapes)

        with fixed_batch_norms() as self.norms_before:
            self.before = self._outputs(None)
        self._expect_repeatable()
        self.places, self.num_images = self._find_places()
        # The names of the modules whose inputs were replaced.
        self.changed_inputs: dict[str, None] = {}

    def result(self) -> ModuleIsolation:
        """Replace the queries of every group, and return the largest changes of the others."""
        passes = []
        if self.queries.parameters or self.queries.own_parameters is not None:
            passes += [Replacement(group, None) for group in range(self.sizes.num_groups)]
        for image in range(self.num_images if self.places else 0):
            passes += [Replacement(group, image) for group in range(self.sizes.num_groups)]
        with fixed_batch_norms() as norms_after:
            changes = {one: self._measure(one) for one in passes[:1]}
        norm = norm_of_queries(self.norms_before, norms_after, TOLERANCE)
        if norm is not None:
            raise MeasurementError(
                f"{reason_to_refuse(norm)}; call model.train() before, or freeze it by "
                "requires_grad_(False) if it is frozen in training, too"
            )
        changes |= {one: self._measure(one) for one in passes[1:]}
        changes |= self._changes_by_images()

        worst = max(changes, key=lambda one: changes[one].of_others)
        leaking, leaking_change = None, None
        if not changes[worst].of_others < TOLERANCE:
            leaking, leaking_change = self._first_leak(worst)
        return ModuleIsolation(
            leak=max(change.other_groups for change in changes.values()),
            image_leak=max(change.other_images for change in changes.values()),
            num_groups=self.sizes.num_groups,
            num_queries=self.sizes.num_queries,
            queries=self.queries.names,
            changed_inputs=tuple(self.changed_inputs),
            leaking_module=leaking,
            leaking_module_change=leaking_change,
        )

    def _measure(self, one: Replacement) -> Change:
        """Return the largest changes of all outputs in a pass.

        `MeasurementError` if the outputs of the group itself do not change.
        """
        largest = self._largest_change(self.before, one)
        if largest is None:
            raise MeasurementError(
                f"no output of the model has an axis of {self.num_images} images beside its "
                f"{self.sizes.total} queries{self._hint_of_mode()}"
            )
        if not largest.own > TOLERANCE:
            raise MeasurementError(
                f"the outputs do not depend on the queries in {', '.join(self.queries.names)}: "
                f"other values in group {one.group} change its outputs by {largest.own:.1e}"
                f"{self._hint_of_mode()}"
            )
        return largest

    def _hint_of_mode(self) -> str:
        if self.hooked.module.training:
            return ""
        return (
            "; the model is in evaluation mode: if it runs one group there, call model.train() "
            "before"
        )

    def _largest_change(self, outputs: Sequence[Tensor], one: Replacement) -> Change | None:
        """Return the largest changes of all outputs, None if none has the axes that it needs."""
        changes = []
        for before, after in zip(outputs, self._outputs(one), strict=True):
            change = self._change(before, after, one)
            if change is not None:
                changes.append(change)
        if not changes:
            return None
        return Change(
            own=max(change.own for change in changes),
            other_groups=max(change.other_groups for change in changes),
            other_images=max(change.other_images for change in changes),
        )

    def _changes_by_images(self) -> dict[Replacement, Change]:
        """Return the changes when the pixels of one image are replaced; {} if they cannot be.

        So groups that are mixed up with images are noticed even if that happens before a module
        takes the queries of every image.
        """
        if self.queries.arguments or not self._image_arguments():
            return {}
        before = self._outputs(NO_IMAGE)
        changes = {}
        for image in range(self.num_images):
            one = Replacement(None, image)
            change = self._largest_change(before, one)
            if change is not None:
                changes[one] = change
            if not self.places and (change is None or not change.own > TOLERANCE):
                raise MeasurementError(f"{self._no_places()}, and image {image} changes no output")
        return changes

    def _image_arguments(self) -> list[Argument]:
        """Return the inputs of the model that are batches of images: [B,...] or a list of B."""
        return [key for key, count in self._image_counts().items() if count == self.num_images]

    def _image_counts(self) -> dict[Argument, int]:
        """Return B of every input of the model that may be a batch of images."""
        counts = {}
        for key, _, value in self.hooked.arguments():
            is_batch = isinstance(value, Tensor) and value.ndim >= 3
            is_list = isinstance(value, list) and all(isinstance(x, Tensor) for x in value)
            if (is_batch or is_list) and all(x.is_floating_point() for x in value):
                counts[key] = len(value)
        return counts

    def _no_places(self) -> str:
        return (
            f"no module of the model takes the {self.sizes.total} queries of two images or more, "
            "[B,K*N,.] or [K*N,B,.], so groups that are mixed up with images would not be noticed"
        )

    def _change(self, before: Tensor, after: Tensor, one: Replacement) -> Change | None:
        return measure_change(before, after, self.sizes, one, self.num_images)

    def _first_leak(self, worst: Replacement) -> tuple[str | None, float | None]:
        """Return the first module of a pass whose outputs leak, and how much they change.

        A module ends before the module that contains it. So it is the innermost one.
        """
        before: dict[tuple[Call, int], Tensor] = {}

        def record(call: Call, output: Any) -> None:
            for number, x in enumerate(float_tensors(output)):
                if self._has_queries(x):
                    before[call, number] = x.clone()

        leaks: list[tuple[str, float]] = []

        def compare(call: Call, output: Any) -> None:
            if leaks:
                return
            for number, after in enumerate(float_tensors(output)):
                x = before.get((call, number))
                if x is None or x.shape != after.shape:
                    continue
                change = self._change(x, after, worst)
                if change is not None and not change.of_others < TOLERANCE:
                    leaks.append((self.hooked.describe(call.name), change.of_others))
                    return

        self._run(None if worst.group is not None else NO_IMAGE, record)
        self._run(worst, compare)
        return leaks[0] if leaks else (None, None)

    def _outputs(self, change: Replacement | None) -> list[Tensor]:
        """Return the outputs of a pass that have an axis of queries."""
        of_modules: list[Tensor] = []

        def record(_: Call, output: Any) -> None:
            of_modules.extend(x.clone() for x in float_tensors(output) if self._has_queries(x))

        if self.measures_modules:
            self._run(change, record)
            return of_modules
        return [x for x in float_tensors(self._run(change)) if self._has_queries(x)]

    def _has_queries(self, x: Tensor) -> bool:
        return bool(find_axes(x.shape, self.sizes))

    def _expect_repeatable(self) -> None:
        """Raise `MeasurementError` unless the outputs are numbers, the same ones in every pass."""
        for x, y in zip(self.before, self._outputs(None), strict=True):
            if bool(x.isnan().any()):
                raise MeasurementError("an output of the model is nan")
            if not bool((absolute_difference(x, y) < TOLERANCE).all()):
                raise MeasurementError(
                    "two passes with the same queries and the same random numbers of torch differ"
                )

    def _run(self, change: Replacement | None, after_call: AfterCall | None = None) -> Any:
        """Return the output of a pass, in which some queries are replaced if ``change`` is given.

        ``after_call`` gets the output of every module.
        """
        if change is None:
            return self.hooked.run(after_call=after_call)
        if change.group is None:
            return self._run_with_other_image(change.image, after_call)
        if change.image is None:
            with self._other_rows(change.group):
                return self.hooked.run(after_call=after_call)
        return self._run_with_other_inputs(change.group, change.image, after_call)

    @contextmanager
    def _other_rows(self, group: int) -> Iterator[None]:
        """Replace the rows of a group in all parameters that are queries."""
        num_groups = self.sizes.num_groups
        values: dict[nn.Parameter, Tensor] = {}
        if self.queries.own_parameters is not None:
            for parameter, row in self.queries.own_parameters.parameters_of_group(group):
                value = parameter.detach().clone()
                value[row] = other_values(value[row])  # row None is a new axis around all rows
                values[parameter] = value
        for parameter in self.queries.parameters.values():
            axes = find_row_axes(parameter.shape, num_groups)
            assert axes is not None
            values[parameter] = replace_group(parameter, axes, num_groups, group)
        with changed_parameters(values):
            yield

    def _run_with_other_image(self, image: int | None, after_call: AfterCall | None) -> Any:
        """Return the output of a pass with other pixels in one image, None for no image.

        The batch norms have their own statistics, because those of a batch depend on all images.
        """

        def replace(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if call != Call("", 0) or image is None:
                return None
            changed_args, changed_kwargs = list(args), dict(kwargs)
            for key in self._image_arguments():
                arguments: Any = changed_args if isinstance(key, int) else changed_kwargs
                images = [*arguments[key]]
                images[image] = other_values(images[image])
                is_batch = isinstance(arguments[key], Tensor)
                arguments[key] = torch.stack(images) if is_batch else images
            return tuple(changed_args), changed_kwargs

        norms = [x for x in self.hooked.module.modules() if isinstance(x, BATCH_NORMS)]
        modes = [norm.training for norm in norms]
        try:
            for norm in norms:
                norm.training = False
            return self.hooked.run(replace, after_call)
        finally:
            for norm, mode in zip(norms, modes):
                norm.training = mode

    def _run_with_other_inputs(self, group: int, image: int, after_call: AfterCall | None) -> Any:
        """Return the output of a pass with other queries of one image where they enter modules."""
        inside: list[Call] = []  # the call whose inputs were replaced, as long as it runs

        def replace(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            # The modules inside get the replaced queries from the module that contains them.
            if inside or call not in self.places:
                return None
            inside.append(call)
            self.changed_inputs[self.hooked.describe(call.name)] = None
            changed_args, changed_kwargs = list(args), dict(kwargs)
            for key in self.places[call]:
                arguments: Any = changed_args if isinstance(key, int) else changed_kwargs
                axes = find_input_axes(arguments[key].shape, self.sizes)
                assert axes is not None
                arguments[key] = replace_group(
                    arguments[key], axes, self.sizes.num_groups, group, image
                )
            return tuple(changed_args), changed_kwargs

        def leave(call: Call, output: Any) -> None:
            if inside and inside[0] == call:
                inside.clear()
            if after_call is not None:
                after_call(call, output)

        return self.hooked.run(replace, leave)

    def _find_places(self) -> tuple[dict[Call, list[Argument]], int]:
        """Return the calls that take the queries of every image as which arguments, and B.

        They are the arguments of modules that depend on the parameters of the queries, and have an
        axis of images. There may be none.
        """
        before = self._trace()
        places: dict[Call, list[Argument]] = {}
        num_images = 0
        if self.queries.arguments:
            places = {Call("", 0): [*self.queries.arguments]}
            key: Argument = next(iter(self.queries.arguments))
            num_images = before[Call("", 0)][key].num_images
        else:
            with self._other_rows(0):
                after = self._trace()
            for call, arguments in after.items():
                for key, argument in arguments.items():
                    if before.get(call, {}).get(key) == argument:
                        continue
                    # The first argument that depends on the queries says how many images there are.
                    num_images = num_images or argument.num_images
                    if argument.num_images == num_images:
                        places.setdefault(call, []).append(key)
        if not places:
            # Then other pixels of an image have to show whether images are mixed up.
            num_images = max(self._image_counts().values(), default=0)
            if num_images < 2:
                raise MeasurementError(self._no_places())
        if num_images == self.sizes.num_queries:
            raise MeasurementError(
                f"there are as many images as queries of a group, {num_images}, so their axes "
                "cannot be told apart: use inputs with another number of images"
            )
        return places, num_images

    def _trace(self) -> dict[Call, dict[Argument, _Argument]]:
        """Return all calls of a pass with those of their arguments that have the shape of queries.

        The calls are in the order in which they begin.
        """
        trace: dict[Call, dict[Argument, _Argument]] = {}

        def note(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            trace[call] = {}
            all_arguments: list[tuple[Argument, Any]] = [*enumerate(args), *kwargs.items()]
            for key, value in all_arguments:
                if not isinstance(value, Tensor) or not value.is_floating_point():
                    continue
                axes = find_input_axes(value.shape, self.sizes)
                if axes is not None:
                    assert axes.image is not None
                    values = value.double()
                    sums = (float(values.sum()), float(values.square().sum()))
                    trace[call][key] = _Argument(sums, value.shape[axes.image])

        self.hooked.run(note)
        return trace
