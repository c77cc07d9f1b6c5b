"""Which parameters or inputs of a model of any origin are its queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from groupdetr.analysis.group_changes import (
    GroupSizes,
    QueryAxes,
    find_axes,
    find_input_axes,
    find_row_axes,
)
from groupdetr.analysis.hooked_module import Argument, HookedModule


class MeasurementError(ValueError):
    """The isolation of the groups of a model cannot be measured. The message says why."""


class OwnParameters(Protocol):
    """What a model of `groupdetr.huggingface` says of its groups, which have no common table."""

    num_groups: int
    num_queries: int

    def parameters_of_group(self, group: int) -> list[tuple[nn.Parameter, int | None]]:
        """Return the parameters that only one group has, each with its row, None for all rows."""


# The attribute of such a model
OWN_PARAMETERS = "_groupdetr_grouping"


@dataclass(frozen=True)
class Queries:
    """Where the queries of a model come from."""

    sizes: GroupSizes
    parameters: dict[str, nn.Parameter]  # by name
    arguments: dict[Argument, str]  # of the forward method: key -> name
    own_parameters: OwnParameters | None = None  # of each group, if the groups share no table

    @property
    def names(self) -> tuple[str, ...]:
        own = () if self.own_parameters is None else ("the parameters of each group",)
        return (*self.parameters, *self.arguments.values(), *own)


@dataclass(frozen=True)
class QueryArgument:
    """An input of the model that may be its queries."""

    key: Argument
    name: str
    num_axes: int
    sizes: GroupSizes


def find_queries(
    hooked: HookedModule,
    num_groups: int,
    names: Sequence[str],
    output_shapes: Sequence[torch.Size],
    module_shapes: Sequence[torch.Size],
) -> Queries:
    """Return the queries of a model: the parameters or inputs with these names.

    Without names, they are the parameters of K*N rows whose number of rows is an axis of the
    outputs. If there are none, they are such inputs. ``module_shapes`` are those of the outputs of
    all modules. `MeasurementError` if there are none, or if they have different numbers of rows.
    """
    own = getattr(hooked.module, OWN_PARAMETERS, None)
    if own is not None and not names:
        if own.num_groups != num_groups:
            raise MeasurementError(
                f"the model has {own.num_groups} groups, and num_groups is {num_groups}"
            )
        return Queries(GroupSizes(num_groups, own.num_queries), {}, {}, own)
    parameters = _candidate_parameters(hooked.module, num_groups)
    arguments = _candidate_arguments(hooked, num_groups)
    if names:
        return _named_queries(hooked.module, num_groups, names, parameters, arguments)

    # A model that returns only its loss is measured by the outputs of its modules.
    for shapes in (output_shapes, module_shapes):
        by_size: dict[GroupSizes, list[str]] = {}
        for name, sizes in parameters.items():
            if any(find_axes(shape, sizes) for shape in shapes):
                by_size.setdefault(sizes, []).append(name)
        if len(by_size) > 1:
            candidates = [name for group in by_size.values() for name in group]
            raise MeasurementError(
                "several parameters may be the queries, and they have different numbers of rows: "
                f"{', '.join(candidates)}; name those that are the queries"
            )
        if by_size:
            sizes, found = next(iter(by_size.items()))
            return Queries(sizes, {name: _parameter(hooked.module, name) for name in found}, {})

        fitting = []
        for argument in arguments:
            # An input of four axes is an image, unless it is named.
            has_rows = any(find_axes(shape[:-1], argument.sizes) for shape in shapes)
            if argument.num_axes == 3 and has_rows:
                fitting.append(argument)
        if len(fitting) > 1:
            raise MeasurementError(
                "several inputs may be the queries: "
                f"{', '.join(argument.name for argument in fitting)}; name those that are"
            )
        if fitting:
            return Queries(fitting[0].sizes, {}, {fitting[0].key: fitting[0].name})
    raise MeasurementError(
        f"no parameter and no input of the model has rows for {num_groups} groups of queries that "
        "its outputs have, too; a model that runs one group in evaluation is measured in training "
        "mode, model.train(); otherwise name the queries"
    )


def _named_queries(
    module: nn.Module,
    num_groups: int,
    names: Sequence[str],
    parameters: dict[str, GroupSizes],
    arguments: Sequence[QueryArgument],
) -> Queries:
    """Return the queries that the names name: parameters, embeddings, or inputs of the model."""
    all_parameters = dict(module.named_parameters())
    found_parameters: dict[str, nn.Parameter] = {}
    found_arguments: dict[Argument, str] = {}
    sizes: set[GroupSizes] = set()
    for name in names:
        # The name of an nn.Embedding is enough.
        full_name = name if name in all_parameters else f"{name}.weight"
        if full_name in all_parameters:
            parameter = all_parameters[full_name]
            axes = find_row_axes(parameter.shape, num_groups)
            if axes is None:
                raise MeasurementError(
                    f"{full_name} {list(parameter.shape)} has not K*N rows for K = {num_groups}"
                )
            found_parameters[full_name] = parameter
            sizes.add(_sizes(parameter.shape, axes, num_groups))
            continue
        fitting = [argument for argument in arguments if argument.name == name]
        if not fitting:
            known = [*parameters, *(argument.name for argument in arguments)]
            raise MeasurementError(
                f"the model has no parameter and no input {name!r} of queries; those with rows for "
                f"{num_groups} groups are: {', '.join(known) or 'none'}"
            )
        found_arguments[fitting[0].key] = name
        sizes.add(fitting[0].sizes)
    if len(sizes) > 1 or (found_parameters and found_arguments):
        raise MeasurementError(
            f"{', '.join(names)} are not the queries together: they must all be parameters or all "
            "be inputs, with the same number of rows"
        )
    return Queries(sizes.pop(), found_parameters, found_arguments)


def _candidate_parameters(module: nn.Module, num_groups: int) -> dict[str, GroupSizes]:
    """Return the parameters that may be queries, by name.

    They are those of embeddings, and those that a class which is not of torch holds itself.
    """
    candidates = {}
    for name, parameter in module.named_parameters():
        owner = module.get_submodule(name.rpartition(".")[0])
        of_torch = type(owner).__module__.startswith("torch.nn")
        if of_torch and not isinstance(owner, nn.Embedding | nn.ParameterList | nn.ParameterDict):
            continue
        axes = find_row_axes(parameter.shape, num_groups)
        if axes is not None and parameter.is_floating_point():
            candidates[name] = _sizes(parameter.shape, axes, num_groups)
    return candidates


def _candidate_arguments(hooked: HookedModule, num_groups: int) -> list[QueryArgument]:
    """Return the inputs of the model that may be queries."""
    candidates = []
    for key, name, value in hooked.arguments():
        # A mask of attention is not finite, or has no numbers.
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim < 3:
            continue
        if not bool(value.isfinite().all()):
            continue
        possible = []
        if value.ndim >= 4 and value.shape[1] == num_groups:
            possible.append(GroupSizes(num_groups, value.shape[2]))
        for rows in value.shape[:2]:
            if rows % num_groups == 0:
                possible.append(GroupSizes(num_groups, rows // num_groups))
        possible = [x for x in possible if find_input_axes(value.shape, x) is not None]
        if possible:
            # With two images and two groups, the axis of images could be K groups of one query.
            largest = max(possible, key=lambda sizes: sizes.total)
            candidates.append(QueryArgument(key, name, value.ndim, largest))
    return candidates


def _sizes(shape: Sequence[int], axes: QueryAxes, num_groups: int) -> GroupSizes:
    """Return K and N of a parameter with these axes."""
    if axes.is_flat:
        return GroupSizes(num_groups, shape[axes.group] // num_groups)
    return GroupSizes(num_groups, shape[axes.group + 1])


def _parameter(module: nn.Module, name: str) -> nn.Parameter:
    return dict(module.named_parameters())[name]
