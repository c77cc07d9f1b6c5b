"""A layout: the names by which somebody's checkpoint calls what we have, as a table."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from groupdetr.checkpoints.reading import Checkpoint
from groupdetr.errors import WeightsError

Names = Mapping[str, str | tuple[str, ...]]
Category = tuple[int, str]  # original id and name of a class
Facts = Mapping[str, Any]  # what a file says beside its tensors


def names_are_enough(facts: Facts) -> bool:
    del facts
    return True


def as_it_is(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return state


@dataclass(frozen=True)
class Layout:
    """``names`` says theirs -> ours: ``#`` stands for a number and ``*`` for any rest, alike on both sides. Several
    names of ours share the rows of one tensor of theirs; none at all, ``()``, drops it. The first row that fits holds.
    Where several of theirs are one of ours, they must be equal.
    """

    title: str
    preset: Callable[
        [Checkpoint], str
    ]  # the one that a file (with our names) belongs to; WeightsError if unclear
    signature: tuple[str, ...]  # names or patterns that this layout alone has all of
    names: Names
    options: Callable[[Facts], dict[str, Any]]  # fields of a recipe that the tensors do not tell
    categories: Callable[
        [Facts], list[Category]
    ]  # what the rows of the class head stand for; [] if unknown
    complete: Callable[[dict[str, Tensor]], dict[str, Tensor]] = (
        as_it_is  # with what ours have and theirs do without
    )
    is_of: Callable[[Facts], bool] = (
        names_are_enough  # does a file with such names say that it is of this layout?
    )

    def fits(self, state: Mapping[str, Tensor]) -> bool:
        return all(any(_pattern(mark).fullmatch(name) for name in state) for mark in self.signature)

    def convert(self, checkpoint: Checkpoint) -> Checkpoint:
        """The tensors under our names; those that the table does not have are an error."""
        ours: dict[str, Tensor] = {}
        unknown, unequal = [], []
        for name, tensor in checkpoint.state.items():
            targets = rename(name, self.names)
            if targets is None:
                unknown.append(name)
            elif targets:
                parts = dict(zip(targets, tensor.chunk(len(targets))))
                unequal += [
                    name
                    for target in parts
                    if target in ours and not torch.equal(ours[target], parts[target])
                ]
                ours |= parts
        refuse(unknown, f"{self.title} has no", checkpoint.where)
        refuse(
            unequal,
            f"{self.title} has one tensor for several of these, which differ:",
            checkpoint.where,
        )
        return replace(checkpoint, state=self.complete(ours))


def rename(name: str, names: Names) -> tuple[str, ...] | None:
    """What we call their ``name``; None if the table does not have it."""
    for theirs, ours in names.items():
        if found := _pattern(theirs).fullmatch(name):
            targets = (ours,) if isinstance(ours, str) else ours
            return tuple(_fill(target, found.groups()) for target in targets)
    return None


def within(names: Names, theirs: str, ours: str) -> Names:
    """The table of a part, as the part is called within the whole: a prefix on either side."""
    return {
        f"{theirs}{name}": f"{ours}{target}"
        if isinstance(target, str)
        else tuple(f"{ours}{one}" for one in target)
        for name, target in names.items()
    }


@cache
def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(re.escape(text).replace(r"\#", r"(\d+)").replace(r"\*", "(.+)"))


def _fill(target: str, parts: Iterable[str]) -> str:
    """The wildcards of ``target`` replaced, one after the other."""
    rest = iter(parts)
    return re.sub(r"[#*]", lambda _: next(rest), target)


def refuse(names: Iterable[str], what: str, where: str) -> None:
    """If there are any names: an error that gives the first ten."""
    names = sorted(names)
    if names:
        more = f", ... ({len(names)} in all)" if len(names) > 10 else ""
        remedy = "check that the weights are of this detector and backbone"
        raise WeightsError(f"{what} {', '.join(names[:10])}{more}", where, remedy)
