"""Layouts: tables of the tensor names in checkpoints of one origin, and our names for them.

The same table reads such checkpoints and writes them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from groupdetr.checkpoints.reading import Checkpoint, Metadata, first_names
from groupdetr.errors import WeightsError

# Their name -> our name, or several of ours, or none. See `Layout.names`.
Names = Mapping[str, str | tuple[str, ...]]
IdAndName = tuple[int, str]  # of a class: its original id and its name
RecipeFields = dict[str, Any]  # fields of a detector's recipe by name, each of its own type


def any_metadata(metadata: Metadata) -> bool:
    """True: the tensor names alone identify the layout."""
    return True


def unchanged(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return state


def every_name(name: str, state: Mapping[str, Tensor]) -> bool:
    """True: all names of the table are written."""
    return True


@dataclass(frozen=True)
class Description:
    """What the metadata of a checkpoint say about its detector."""

    fields: RecipeFields  # of its recipe
    categories: Sequence[tuple[int | str, str]]  # original id and name of its classes
    imgsz: int  # the shortest side of its images in pixels


@dataclass(frozen=True)
class Layout:
    """The tensor names of one kind of checkpoint, and what they mean.

    ``names`` maps their names to ours. ``#`` stands for a number and ``*`` for any other text; the
    wildcards of both sides correspond in order. A tuple of our names splits their tensor into equal
    parts along its first axis. An empty tuple drops their tensor. The first entry that matches a
    name is used. If several of their tensors have the same name of ours, they must be equal.

    A layout can be written if it has a function ``describe``. Then a tensor of ours gets all of
    their names that the table has for it.
    """

    title: str
    # Returns the preset that a file with our names belongs to. `WeightsError` if it is unclear.
    preset: Callable[[Checkpoint], str]
    # Names or patterns. A file has this layout only if it has a tensor for each of them.
    signature: tuple[str, ...]
    names: Names
    # Returns the recipe fields that the metadata has. The shapes of the tensors give the others.
    # `WeightsError` if no model of ours can be like that.
    options: Callable[[Checkpoint], RecipeFields]
    # Returns id and name of the classes, in the order of the rows of the class head; [] if unknown.
    categories: Callable[[Metadata], list[IdAndName]]
    # Changes the converted tensors where a renaming is not enough.
    complete: Callable[[dict[str, Tensor]], dict[str, Tensor]] = unchanged
    # True if the metadata of a file with such names says that the file has this layout.
    matches_metadata: Callable[[Metadata], bool] = any_metadata
    # Other names that such files may have, such as those of older versions. They are only read.
    also_read: Names = field(default_factory=dict)
    # Undoes ``complete`` before the tensors get their names.
    undo_complete: Callable[[dict[str, Tensor]], dict[str, Tensor]] = unchanged
    # Adds tensors that their code has and that reading drops, when all others have their names.
    add_dropped: Callable[[dict[str, Tensor]], dict[str, Tensor]] = unchanged
    # True for a name of theirs that a checkpoint with these tensors of ours has.
    is_written: Callable[[str, Mapping[str, Tensor]], bool] = every_name
    # Returns the metadata of a checkpoint, which ``options`` and ``categories`` read again.
    describe: Callable[[Description], dict[str, Any]] | None = None

    def fits(self, state: Mapping[str, Tensor]) -> bool:
        """True if every name of the signature is among the names of the tensors."""
        return all(_has_match(pattern, state) for pattern in self.signature)

    def convert(self, checkpoint: Checkpoint) -> Checkpoint:
        """Return the tensors under our names.

        `WeightsError` if the table lacks one of their names, if tensors that must be equal are not,
        or if a tensor has not the shape that the layout relies on.
        """
        try:
            return self._convert(checkpoint)
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            # A layout relies on the shapes that its tensors have, and others fail in many ways.
            raise WeightsError(
                f"by its names this file is {self.title}, but its tensors have other shapes",
                checkpoint.where,
                "copy or download the file again, or get it from a source that you trust",
            ) from error

    def _convert(self, checkpoint: Checkpoint) -> Checkpoint:
        ours: dict[str, Tensor] = {}
        unknown, unequal = [], []
        names = {**self.also_read, **self.names}
        for name, tensor in checkpoint.state.items():
            targets = rename(name, names)
            if targets is None:
                unknown.append(name)
            elif targets:
                parts = tensor.chunk(len(targets)) if len(targets) > 1 else (tensor,)
                if len(parts) != len(targets):
                    raise ValueError(f"{name} {tuple(tensor.shape)} is not {len(targets)} parts")
                for target, part in zip(targets, parts):
                    if target in ours and not torch.equal(ours[target], part):
                        unequal.append(name)
                    ours[target] = part
        where = checkpoint.where
        refuse(unknown, f"{self.title} has no", where)
        refuse(unequal, f"{self.title} has one tensor for several of these, which differ:", where)
        return replace(checkpoint, state=self.complete(ours))

    def revert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors of ours under all names that a checkpoint of this layout has for them.

        Their tensors have no axis of groups, so ``state`` has none. Tensors for which the layout
        has no name are left out.
        """
        ours = self.undo_complete(dict(state))
        theirs: dict[str, Tensor] = {}
        for pattern, target in self.names.items():
            targets = (target,) if isinstance(target, str) else target
            for name in ours if targets else ():
                match = _compile(targets[0]).fullmatch(name)
                if match is None:
                    continue
                their_name = _fill_wildcards(pattern, match.groups())
                # Of several entries that fit, a name is read by the first one.
                parts = rename(their_name, self.names)
                if not parts or not self.is_written(their_name, ours) or parts[0] != name:
                    continue
                tensors = [ours[part] for part in parts if part in ours]
                if len(tensors) == len(parts):
                    theirs[their_name] = torch.cat(tensors) if len(parts) > 1 else tensors[0]
        return self.add_dropped(theirs)


def rename(name: str, names: Names) -> tuple[str, ...] | None:
    """Return our names of their tensor ``name``; None if the table does not have it."""
    for theirs, ours in names.items():
        match = _compile(theirs).fullmatch(name)
        if match:
            targets = (ours,) if isinstance(ours, str) else ours
            return tuple(_fill_wildcards(target, match.groups()) for target in targets)
    return None


def with_prefixes(names: Names, theirs: str, ours: str) -> Names:
    """Return the table of a part under the part's prefixes: ``theirs`` and ``ours``."""
    table: dict[str, str | tuple[str, ...]] = {}
    for name, target in names.items():
        if isinstance(target, str):
            table[f"{theirs}{name}"] = f"{ours}{target}"
        else:
            table[f"{theirs}{name}"] = tuple(f"{ours}{one}" for one in target)
    return table


def _has_match(pattern: str, names: Iterable[str]) -> bool:
    return any(_compile(pattern).fullmatch(name) for name in names)


@cache
def _compile(pattern: str) -> re.Pattern[str]:
    """Return the regular expression of a pattern of a layout."""
    return re.compile(re.escape(pattern).replace(r"\#", r"(\d+)").replace(r"\*", "(.+)"))


def _fill_wildcards(target: str, values: Sequence[str]) -> str:
    """Replace the wildcards of ``target`` by the values, one after the other."""
    remaining = iter(values)
    return re.sub(r"[#*]", lambda _: next(remaining), target)


def refuse(names: Iterable[str], what: str, where: str) -> None:
    """Raise a `WeightsError` that lists the first ten names, unless there are none.

    ``what`` comes before the names, and ``where`` is the file.
    """
    names = sorted(names)
    if names:
        remedy = "check that the weights are of this detector and backbone"
        raise WeightsError(f"{what} {first_names(names)}", where, remedy)
