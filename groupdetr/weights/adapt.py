"""Adapts the queries and classes of a checkpoint to a model that has other numbers of them.

Rows are loaded, left out or newly initialised. The functions return lines of the `LoadReport`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from groupdetr.errors import WeightsError
from groupdetr.modeling.heads import PRIOR_BIAS

# Tables of learned queries, [K,N,...].
TABLES = re.compile(r"queries\.(matching\.)?(embedding|position|anchors|points)")
# Proposal heads, [K,...], and the rows of their classes, [K,classes,...].
PROPOSAL_HEADS = re.compile(r"queries\.(matching\.)?heads\..*")
PROPOSAL_CLASS_ROWS = re.compile(r"queries\.(matching\.)?heads\.classify\.(weight|bias)")
# Class heads of the decoder, [classes,...].
CLASS_ROWS = re.compile(r"decoder\.heads\.\d+\.classify\.(weight|bias)")
# [1,C], the row for "no object" of a head with a softmax over classes.
NO_OBJECT = "decoder.heads.0.no_object.weight"
# Label embedding of denoising queries, [classes + 1,...], the last row for "no object".
LABEL_ROWS = "queries.labels.weight"
# Names of rows that are not a class.
UNNAMED = ("", "n/a")


def unflatten_groups(state: Mapping[str, Tensor], num_groups: int) -> dict[str, Tensor]:
    """Return the state of a file without an axis of groups with that axis.

    Query tables of K*N rows, group after group, become [K,N,...]. A proposal head becomes the only
    one of its groups, [1,...].
    """
    unflattened = dict(state)
    for name, value in state.items():
        if PROPOSAL_HEADS.fullmatch(name):
            unflattened[name] = value.unsqueeze(0)
        if TABLES.fullmatch(name):
            unflattened[name] = value.unflatten(0, (num_groups, -1))
    return unflattened


def query_tables(state: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the learned query tables."""
    return [name for name in state if TABLES.fullmatch(name)]


def fit_groups(state: dict[str, Tensor], model: Mapping[str, Tensor]) -> list[str]:
    """Give ``state`` as many groups, and queries per group, as ``model`` has.

    Return a line for each difference. Tensors of another width are not changed.
    """
    lines = []
    for name in state:
        theirs, ours = state[name], model[name]
        if TABLES.fullmatch(name) and theirs.shape[2:] == ours.shape[2:]:
            lines += _describe_difference("groups", len(theirs), len(ours))
            lines += _describe_difference("queries of a group", theirs.shape[1], ours.shape[1])
            state[name] = fit_table(theirs, ours)
        elif PROPOSAL_HEADS.fullmatch(name) and theirs.shape[1:] == ours.shape[1:]:
            lines += _describe_difference("groups", len(theirs), len(ours))
            state[name] = fit_heads(theirs, ours)
    return list(dict.fromkeys(lines))  # several tensors give the same line


def fit_heads(theirs: Tensor, ours: Tensor) -> Tensor:
    """Return proposal heads [K,...]: theirs for as many groups as they have, ours for the others.

    The reason is that of `fit_table`.
    """
    groups = min(len(theirs), len(ours))
    return torch.cat([theirs[:groups], ours[groups:].detach()])


def fit_table(theirs: Tensor, ours: Tensor) -> Tensor:
    """Return a query table [K,N,...]: their rows if they have that group and query, ours otherwise.

    Group 0 remains group 0. Our rows are the random initialisation of a new model and not copies of
    theirs, because equal groups would have equal gradients and stay equal.
    """
    groups = min(theirs.shape[0], ours.shape[0])
    queries = min(theirs.shape[1], ours.shape[1])
    table = ours.detach().clone()
    table[:groups, :queries] = theirs[:groups, :queries]
    return table


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


def replace_class_head(
    state: dict[str, Tensor],
    model: Mapping[str, Tensor],
    theirs: Sequence[str],
    ours: Sequence[str],
) -> list[str]:
    """Give ``state`` a class head for the model, and return a line that says what was done.

    Rows of classes with the same name in both are theirs, the others are newly initialised. A row
    for "no object" is not a class, so it is loaded as it is.
    """
    loaded = shared_rows(theirs, ours)
    bound = model[NO_OBJECT].shape[1] ** -0.5 if NO_OBJECT in model else None
    num_rows = 0
    for name in [name for name in state if CLASS_ROWS.fullmatch(name)]:
        state[name] = replace_rows(state[name], new_rows(model[name], bound), loaded)
        num_rows = len(state[name])
    for name in [name for name in state if PROPOSAL_CLASS_ROWS.fullmatch(name)]:
        groups = []
        for rows, like in zip(state[name], model[name]):
            groups.append(replace_rows(rows, new_rows(like), loaded))
        state[name] = torch.stack(groups)
    if LABEL_ROWS in state:
        rows = torch.randn_like(model[LABEL_ROWS])
        rows[[*loaded, -1]] = state[LABEL_ROWS][[*loaded.values(), -1]]
        state[LABEL_ROWS] = rows
    new = num_rows - len(loaded)
    return [f"classes: {len(loaded)} rows loaded by name, {new} newly initialised"]


def replace_rows(theirs: Tensor, new: Tensor, loaded: Mapping[int, int]) -> Tensor:
    """Return ``new`` with rows of ``theirs``. ``loaded``: row of ``new`` -> row of ``theirs``."""
    new[list(loaded)] = theirs[list(loaded.values())]
    return new


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


def new_rows(like: Tensor, bound: float | None = None) -> Tensor:
    """Return newly initialised rows of a class head: weights or biases of the shape of ``like``.

    Weights have torch's initialisation of a linear layer. Biases are `PRIOR_BIAS`. A softmax
    over classes has no prior, so with ``bound`` biases have torch's initialisation, too: uniform
    between -bound and bound.
    """
    rows = torch.empty_like(like)
    if like.ndim > 1:
        return nn.init.kaiming_uniform_(rows, a=math.sqrt(5))
    if bound is not None:
        return rows.uniform_(-bound, bound)
    return rows.fill_(PRIOR_BIAS)


def _comparison_key(name: str) -> str:
    """Return a class name without case and surrounding spaces."""
    return name.strip().casefold()
