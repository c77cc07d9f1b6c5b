"""Make a checkpoint's queries and classes fit a model with others: rows are taken, dropped or drawn, and it is said."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from groupdetr.errors import WeightsError
from groupdetr.modeling.heads import PRIOR

TABLES = re.compile(r"queries\.(matching\.)?(embedding|position|anchors|points)")  # [K,N,...]
PROPOSING = re.compile(r"queries\.(matching\.)?heads\..*")  # [K,...]
PROPOSED_ROWS = re.compile(
    r"queries\.(matching\.)?heads\.classify\.(weight|bias)"
)  # [K,classes,...]
CLASS_ROWS = re.compile(r"decoder\.heads\.\d+\.classify\.(weight|bias)")  # [classes,...]
NOTHING = "decoder.heads.0.nothing.weight"  # [1,C], the row for no object of a head whose classes are a softmax
LABEL_ROWS = "queries.labels.weight"  # [classes + 1,...], the last for no object
NAMELESS = ("", "n/a")


def unfold_groups(state: dict[str, Tensor], num_groups: int) -> dict[str, Tensor]:
    """Tables of K*N rows, group after group, as [K,N,...]; and of a head without groups the only one."""
    proposing = {name: state[name].unsqueeze(0) for name in state if PROPOSING.fullmatch(name)}
    return (
        state
        | proposing
        | {name: state[name].unflatten(0, (num_groups, -1)) for name in tables(state)}
    )


def tables(state: Mapping[str, Tensor]) -> list[str]:
    """The names of learned queries."""
    return [name for name in state if TABLES.fullmatch(name)]


def fit_groups(state: dict[str, Tensor], model: Mapping[str, Tensor]) -> list[str]:
    """Take as many groups, and queries of each, as the model has; say what was done."""
    lines: dict[str, None] = {}
    for name in tables(state):
        lines |= dict.fromkeys(_differences(state[name].shape, model[name].shape))
        state[name] = overlay(state[name], model[name])
    for name in [name for name in state if PROPOSING.fullmatch(name)]:
        lines |= dict.fromkeys(_differences(state[name].shape[:1], model[name].shape[:1]))
        state[name] = side_by_side(state[name], model[name])
    return list(lines)


def side_by_side(theirs: Tensor, ours: Tensor) -> Tensor:
    """Of two heads [K,...], theirs for as many groups as it has and ours for the rest, for the reason of `overlay`."""
    if theirs.shape[1:] != ours.shape[1:]:
        return theirs  # of another width: not ours to fit
    groups = min(len(theirs), len(ours))
    return torch.cat([theirs[:groups], ours[groups:].detach()])


def overlay(theirs: Tensor, ours: Tensor) -> Tensor:
    """Of two tables [K,N,...], theirs as far as it reaches on both axes and ours beyond; group 0 stays group 0.

    What is ours are a new model's independent draws, and not copies of theirs: equal groups would be taught the same
    for ever.
    """
    if theirs.shape[2:] != ours.shape[2:]:
        return theirs  # of another width: not ours to fit
    groups, queries = (min(pair) for pair in zip(theirs.shape[:2], ours.shape[:2]))
    table = ours.detach().clone()
    table[:groups, :queries] = theirs[:groups, :queries]
    return table


def _differences(theirs: Sequence[int], ours: Sequence[int]) -> list[str]:
    lines = []
    for what, has, wants in zip(("groups", "queries of a group"), theirs, ours):
        if has > wants:
            lines.append(f"{what}: {has} in the file, {wants} in the model: took the first {wants}")
        if has < wants:
            lines.append(
                f"{what}: {has} in the file, {wants} in the model: took {has}, drew the other {wants - has}"
            )
    return lines


def check_classes(
    sizes: tuple[int, int], theirs: Sequence[str], ours: Sequence[str], where: str
) -> None:
    """Class rows mean something: to load another number of them, or under other names, must be asked for."""
    remedy = "to keep the rows of the classes both have and start the others anew: new_head=True (--new-head)"
    if sizes[0] != sizes[1]:
        raise WeightsError(
            f"{sizes[0]} classes in the file, {sizes[1]} in the model", where, remedy
        )
    for row, (a, b) in enumerate(zip(map(_key, theirs), map(_key, ours))):
        if a != b and a not in NAMELESS and b not in NAMELESS:
            raise WeightsError(
                f"class {row} is {theirs[row]!r} in the file, {ours[row]!r} here", where, remedy
            )


def renew_head(
    state: dict[str, Tensor],
    model: Mapping[str, Tensor],
    theirs: Sequence[str],
    ours: Sequence[str],
) -> list[str]:
    """A class head for the model: rows of theirs for classes that both know by name, the others fresh. A row for no
    object is no class, and stays."""
    taken = shared_rows(theirs, ours)
    names = [name for name in state if CLASS_ROWS.fullmatch(name)]
    bound = model[NOTHING].shape[1] ** -0.5 if NOTHING in model else None
    for name in names:
        state[name] = renewed_rows(state[name], fresh_rows(model[name], bound), taken)
    for name in [name for name in state if PROPOSED_ROWS.fullmatch(name)]:
        state[name] = torch.stack(
            [
                renewed_rows(rows, fresh_rows(like), taken)
                for rows, like in zip(state[name], model[name])
            ]
        )
    if LABEL_ROWS in state:
        rows = torch.randn_like(model[LABEL_ROWS])
        rows[[*taken, -1]] = state[LABEL_ROWS][[*taken.values(), -1]]
        state[LABEL_ROWS] = rows
    return [
        f"classes: {len(taken)} rows taken by name, {len(state[names[0]]) - len(taken)} started anew"
    ]


def renewed_rows(theirs: Tensor, fresh: Tensor, taken: Mapping[int, int]) -> Tensor:
    fresh[list(taken)] = theirs[list(taken.values())]
    return fresh


def shared_rows(theirs: Sequence[str], ours: Sequence[str]) -> dict[int, int]:
    """Rows of ours -> rows of theirs that mean the same class; with equal lists, row for row."""
    their_keys, our_keys = [*map(_key, theirs)], [*map(_key, ours)]
    if their_keys == our_keys:
        return {row: row for row in range(len(ours))}
    rows = {key: row for row, key in enumerate(their_keys) if key not in NAMELESS}
    return {row: rows[key] for row, key in enumerate(our_keys) if key in rows}


def fresh_rows(like: Tensor, bound: float | None = None) -> Tensor:
    """Rows of a class head before training: torch's start of a linear layer, and the prior in the bias. A softmax has
    no prior: there torch starts the bias, too, uniform within ``bound``."""
    rows = torch.empty_like(like)
    if like.ndim > 1:
        return nn.init.kaiming_uniform_(rows, a=math.sqrt(5))
    if bound is not None:
        return rows.uniform_(-bound, bound)
    return rows.fill_(-math.log((1 - PRIOR) / PRIOR))


def _key(name: str) -> str:
    """A name as it is compared."""
    return name.strip().casefold()
