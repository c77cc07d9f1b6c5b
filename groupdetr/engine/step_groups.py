"""Training some of the K groups in a step: drawn at random, or fewer groups after a while.

The loss of a step is the mean over its groups. With ``--groups-per-step k``, every group is drawn
equally often, so the expectation of the gradient is that of all K groups. A group that is not drawn
is not changed by the step: its queries have no gradient, so neither the momentum nor the weight
decay of AdamW moves them, and its moments and its count of steps stay as they are. They are as they
would be if only the steps in which the group was drawn existed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from groupdetr.errors import UsageError
from groupdetr.modeling.parameter_axes import Axis, declared_axes
from groupdetr.modeling.queries.query_source import QuerySource
from groupdetr.settings import Settings

GROUPS = 1  # the number of this stream of random numbers, besides those of images and dropout


class StepGroups:
    """Decides which groups a step trains, and keeps the rows of the others as they are.

    ``model`` is a detector whose parameters have an axis of K groups. `UsageError` if none has.
    """

    def __init__(self, model: nn.Module, settings: Settings) -> None:
        self.model = model
        self.settings = settings
        self.rows = GroupRows(model)
        self.groups: tuple[int, ...] = ()  # those of the current step

    def begin(self, step: int, progress: float) -> tuple[int, ...]:
        """Let the query sources run the groups of this step, and return their indices."""
        groups = groups_of_step(self.settings, self.rows.num_groups, step, progress)
        set_step_groups(self.model, groups)
        self.groups = groups
        return groups

    def give_gradients(self, optimizer: torch.optim.Optimizer, progress: float) -> None:
        """Give the rows of the groups of this step their gradients, before the optimizer's step.

        The moments of groups that the schedule has left behind are freed.
        """
        self.rows.set_gradients(self.groups)
        kept = self.settings.groups_at(progress)
        if kept is not None:
            self.rows.drop_state(optimizer, kept)


def trains_some_groups(settings: Settings) -> bool:
    """True if steps may train fewer groups than the model has."""
    return settings.groups_per_step is not None or settings.groups_schedule is not None


def groups_of_step(
    settings: Settings, num_groups: int, step: int, progress: float
) -> tuple[int, ...]:
    """Return the indices of the groups that are trained in step ``step``, counted from 0.

    ``progress`` in [0,1] is the fraction of the training that is done. The result depends on these
    arguments only, so it is the same in every process and in a run that is resumed.
    """
    kept = min(num_groups, settings.groups_at(progress) or num_groups)
    per_step = settings.groups_per_step
    if per_step is None or per_step >= kept:
        return tuple(range(kept))
    generator = np.random.default_rng((settings.seed, step, GROUPS))
    return tuple(sorted(generator.choice(kept, per_step, replace=False).tolist()))


def set_step_groups(model: nn.Module, groups: tuple[int, ...] | None) -> None:
    """Let the query sources of a model run these groups in training; None: all of them."""
    for module in model.modules():
        if isinstance(module, QuerySource):
            module.step_groups = groups


class GroupRows:
    """The rows of every group, as parameters of their own for the optimizer.

    A parameter such as a table of queries [K,N,C] holds all groups. For the optimizer it is K
    parameters, which share its memory. So a group that was not drawn can be left out of a step.
    """

    def __init__(self, model: nn.Module) -> None:
        self.tables: dict[str, tuple[nn.Parameter, int]] = {}  # by name, with the axis of groups
        self.rows: dict[str, list[nn.Parameter]] = {}
        parameters = dict(model.named_parameters())
        self.num_groups = 0
        for name, axes in declared_axes(model).items():
            axis = axes.index(Axis.GROUP)
            if axis is None or name not in parameters:
                continue
            table = parameters[name]
            self.num_groups = table.shape[axis]
            if table.requires_grad:
                self.tables[name] = (table, axis)
                rows = table.detach().unbind(axis)
                self.rows[name] = [nn.Parameter(row) for row in rows]
        if not self.num_groups:
            raise UsageError(
                "no module of the model declares which axis of its parameters are the groups, so "
                "they cannot be trained one by one",
                remedy="leave out --groups-per-step and --groups-schedule, or write a method "
                "parameter_axes() for the query source",
            )

    @property
    def have_gaps(self) -> bool:
        """True if a row is not one piece of memory: groups are not the first axis of a table."""
        return not all(row.is_contiguous() for rows in self.rows.values() for row in rows)

    def in_place_of(self, name: str, parameter: nn.Parameter) -> Sequence[nn.Parameter]:
        """Return what the optimizer has in place of a parameter: its rows, or the parameter."""
        return self.rows.get(name, [parameter])

    def names(self) -> dict[int, str]:
        """Return the name of every row by its id, such as queries.embedding[3] of group 3."""
        return {
            id(row): f"{name}[{group}]"
            for name, rows in self.rows.items()
            for group, row in enumerate(rows)
        }

    def set_gradients(self, groups: Sequence[int]) -> None:
        """Give the rows of ``groups`` their part of the gradient, and the others none."""
        for name, (table, axis) in self.tables.items():
            for group, row in enumerate(self.rows[name]):
                has_gradient = table.grad is not None and group in groups
                row.grad = table.grad.select(axis, group) if has_gradient else None  # type: ignore[union-attr]

    def drop_state(self, optimizer: torch.optim.Optimizer, first: int) -> None:
        """Free the moments of the groups from ``first`` on, which are not trained any more."""
        for rows in self.rows.values():
            for row in rows[first:]:
                optimizer.state.pop(row, None)

    def divided(self, states: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Return the states of an optimizer by name, with those of tables divided into rows.

        A run that trained all groups in every step has the state of the whole table.
        """
        divided = dict(states)
        for name, (table, axis) in self.tables.items():
            whole = divided.pop(name, None)
            if whole is None:
                continue
            for group in range(self.num_groups):
                row: dict[str, Any] = {}
                for key, value in whole.items():
                    is_table = isinstance(value, Tensor) and value.shape == table.shape
                    part = value.select(axis, group) if is_table else value
                    # The optimizer changes tensors in place, the count of steps included, so each
                    # row has its own.
                    row[key] = part.clone() if isinstance(part, Tensor) else part
                divided[f"{name}[{group}]"] = row
        return divided
