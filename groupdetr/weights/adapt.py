"""Adapts the queries and classes of a checkpoint to a model that has other numbers of them.

Rows are loaded, left out or newly initialised. The functions return lines of the `LoadReport`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from groupdetr.errors import WeightsError
from groupdetr.modeling.parameter_axes import Axis, ParameterAxes, count_by_name

# Names of rows that are not a class.
UNNAMED = ("", "n/a")


def lacks_groups(theirs: Tensor, ours: Tensor, axes: ParameterAxes) -> bool:
    """Return whether a tensor of a file lacks the axis of groups that the model's has."""
    return axes.index(Axis.GROUP) is not None and theirs.ndim == ours.ndim - 1


def count_flat_rows(theirs: Tensor, axes: ParameterAxes) -> int | None:
    """Return the number K*N of queries of a tensor that lacks the axis of groups.

    It is None for a tensor without an axis of queries after that of groups.
    """
    group_axis = axes.index(Axis.GROUP)
    if group_axis is None or axes.index(Axis.QUERY) != group_axis + 1:
        return None
    return theirs.shape[group_axis]


def unflatten_groups(theirs: Tensor, axes: ParameterAxes, num_groups: int) -> Tensor:
    """Return a tensor of a file without an axis of groups with that axis.

    A query table of K*N rows, group after group, becomes [K,N,...]. If it has another number of
    rows, it is returned as it is. A tensor without rows of queries, such as a proposal head,
    becomes that of the only group, [1,...].
    """
    group_axis = axes.index(Axis.GROUP)
    assert group_axis is not None
    rows = count_flat_rows(theirs, axes)
    if rows is None:
        return theirs.unsqueeze(group_axis)
    if rows % num_groups:
        return theirs
    return theirs.unflatten(group_axis, (num_groups, -1))


def exchange_groups(
    state: dict[str, Tensor], declared: Mapping[str, ParameterAxes], first: int, second: int
) -> bool:
    """Exchange two groups of ``state`` in every tensor that has both, and return if any has.

    ``declared`` is what the model's modules declare (`declared_axes`).
    """
    is_changed = False
    for name, axes in declared.items():
        axis = axes.index(Axis.GROUP)
        if axis is None or name not in state or max(first, second) >= state[name].shape[axis]:
            continue
        order = torch.arange(state[name].shape[axis], device=state[name].device)
        order[[first, second]] = order[[second, first]]
        state[name] = state[name].index_select(axis, order)
        is_changed = True
    return is_changed


def fit_groups(
    state: dict[str, Tensor],
    model: Mapping[str, Tensor],
    declared: Mapping[str, ParameterAxes],
) -> list[str]:
    """Give ``state`` as many groups, and queries per group, as ``model`` has.

    ``declared`` is what the model's modules declare (`declared_axes`). Return a line for each
    difference. Tensors that differ along another axis are not changed.
    """
    lines = []
    for name, axes in declared.items():
        theirs, ours = state[name], model[name]
        fitted_axes = [axes.index(axis) for axis in (Axis.GROUP, Axis.QUERY)]
        if not equal_except(theirs, ours, fitted_axes):
            continue
        for axis, what in ((Axis.GROUP, "groups"), (Axis.QUERY, "queries of a group")):
            their_count, our_count = axes.count(axis, theirs), axes.count(axis, ours)
            if their_count is not None and our_count is not None:
                lines += _describe_difference(what, their_count, our_count)
        state[name] = fit_rows(theirs, ours)
    return list(dict.fromkeys(lines))  # several tensors give the same line


def fit_rows(theirs: Tensor, ours: Tensor) -> Tensor:
    """Return a tensor like ``ours``: their values if they have that group and query, else ours.

    Group 0 remains group 0. Our values are the random initialisation of a new model and not copies
    of theirs, because equal groups would have equal gradients and stay equal.
    """
    shared = tuple(slice(min(sizes)) for sizes in zip(theirs.shape, ours.shape))
    fitted = ours.detach().clone()
    fitted[shared] = theirs[shared].to(fitted)
    return fitted


def equal_except(theirs: Tensor, ours: Tensor, axes: Sequence[int | None]) -> bool:
    """Return whether the shapes of two tensors are equal, except along ``axes``."""
    if theirs.ndim != ours.ndim:
        return False
    sizes = enumerate(zip(theirs.shape, ours.shape))
    return all(their_size == our_size or i in axes for i, (their_size, our_size) in sizes)


def _describe_difference(what: str, theirs: int, ours: int) -> list[str]:
    """Return a line if the numbers of groups or queries differ, [] otherwise."""
    counts = f"{what}: {theirs} in the file, {ours} in the model"
    if theirs > ours:
        return [f"{counts}: loaded the first {ours}"]
    if theirs < ours:
        return [f"{counts}: loaded {theirs}, newly initialised the other {ours - theirs}"]
    return []


def check_classes(
    num_classes: tuple[int, int], theirs: Sequence[str], ours: Sequence[str], where: str
) -> None:
    """Raise `WeightsError` if file and model have different classes.

    ``num_classes`` are the numbers of the file and of the model, and ``theirs`` and ``ours`` the
    class names, [] if unknown. Each row of a class head is one class, so a class head is replaced
    only if the user asks for it with ``new_head``.
    """
    remedy = (
        "train from these weights with groupdetr train --weights, or in Python pass new_head=True "
        "and class_names: rows of classes in both are loaded, the others newly initialised"
    )
    if num_classes[0] != num_classes[1]:
        raise WeightsError(
            f"{num_classes[0]} classes in the file, {num_classes[1]} in the model", where, remedy
        )
    for row, (their_name, our_name) in enumerate(zip(theirs, ours)):
        their_key, our_key = _comparison_key(their_name), _comparison_key(our_name)
        if their_key != our_key and their_key not in UNNAMED and our_key not in UNNAMED:
            raise WeightsError(
                f"class {row} is {their_name!r} in the file, {our_name!r} in the model",
                where,
                remedy,
            )


def count_classes(
    state: Mapping[str, Tensor], declared: Mapping[str, ParameterAxes], where: str
) -> int:
    """Return the number of classes of a state.

    ``declared`` is what the modules of its model declare. ``where`` is the file. `WeightsError` if
    they declare no classes, or if tensors of the state have different numbers of them.
    """
    counts = count_by_name(Axis.CLASS, declared, state)
    if not counts:
        raise WeightsError(
            "no module of the model declares which axis of its parameters are the classes",
            where,
            "write a method parameter_axes() for the prediction head, as BoxHead in "
            "groupdetr/modeling/heads.py has it",
        )
    first_name = next(iter(counts))
    for name, count in counts.items():
        if count != counts[first_name]:
            raise WeightsError(
                f"the file has {counts[first_name]} classes in {first_name} and {count} in {name}",
                where,
                "use weights whose parts all have the same classes",
            )
    return counts[first_name]


def replace_classes(
    state: dict[str, Tensor],
    model: Mapping[str, Tensor],
    declared: Mapping[str, ParameterAxes],
    theirs: Sequence[str],
    ours: Sequence[str],
) -> list[str]:
    """Give ``state`` the classes of the model, and return a line that says what was done.

    ``declared`` is what the model's modules declare (`declared_axes`). ``theirs`` and ``ours`` are
    class names. Rows of classes with the same name in both are theirs, the others are newly
    initialised. A row for "no object" is not a class, so it is loaded as it is. Tensors of another
    width are not changed.
    """
    rows = shared_rows(theirs, ours)
    for name, axes in declared.items():
        class_axis = axes.index(Axis.CLASS)
        changed_axes = [class_axis, axes.index(Axis.GROUP), axes.index(Axis.QUERY)]
        if class_axis is not None and equal_except(state[name], model[name], changed_axes):
            state[name] = replace_rows(state[name], model[name], axes, rows)
    num_classes = next(iter(count_by_name(Axis.CLASS, declared, model).values()))
    new = num_classes - len(rows)
    return [f"classes: {len(rows)} rows loaded by name, {new} newly initialised"]


def replace_rows(
    theirs: Tensor, ours: Tensor, axes: ParameterAxes, rows: Mapping[int, int]
) -> Tensor:
    """Return a newly initialised tensor with the classes of ``ours`` and some rows of ``theirs``.

    ``rows``: our row -> their row. It has the groups of ``theirs``.
    """
    class_axis = axes.index(Axis.CLASS)
    assert class_axis is not None
    assert axes.init_classes is not None
    shape = list(theirs.shape)
    shape[class_axis] = ours.shape[class_axis]
    new = ours.new_empty(shape)
    axes.init_classes(new)
    if Axis.CLASS_OR_NO_OBJECT in axes.axes:
        last, their_last = shape[class_axis] - 1, theirs.shape[class_axis] - 1
        rows = {**rows, last: their_last}
    our_rows = torch.tensor(list(rows), dtype=torch.int64, device=new.device)
    their_rows = torch.tensor(list(rows.values()), dtype=torch.int64, device=theirs.device)
    loaded = theirs.index_select(class_axis, their_rows).to(new)
    return new.index_copy(class_axis, our_rows, loaded)


def shared_rows(theirs: Sequence[str], ours: Sequence[str]) -> dict[int, int]:
    """Return our row -> their row for every class with the same name in both.

    If the lists of names are equal, every row is shared, also those without a name.
    """
    their_keys = [_comparison_key(name) for name in theirs]
    our_keys = [_comparison_key(name) for name in ours]
    if their_keys == our_keys:
        return {row: row for row in range(len(ours))}
    their_rows = {key: row for row, key in enumerate(their_keys) if key not in UNNAMED}
    return {row: their_rows[key] for row, key in enumerate(our_keys) if key in their_rows}


def _comparison_key(name: str) -> str:
    """Return a class name without case and surrounding spaces."""
    return name.strip().casefold()
