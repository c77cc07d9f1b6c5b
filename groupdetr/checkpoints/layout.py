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

from groupdetr.checkpoints.checkpoint import Checkpoint, Metadata, first_names
from groupdetr.errors import WeightsError

MAX_GROUPS = 1024  # more than any checkpoint has


@dataclass(frozen=True)
class Transposed:
    """Our names of a tensor whose matrix is transposed: [in,out] is theirs, [out,in] is ours.

    A vector stays as it is, so one entry of a table can stand for the weight and the bias of a
    linear layer.
    """

    names: str | tuple[str, ...]


@dataclass(frozen=True)
class OfGroup:
    """Our names of the tensor of one group, where theirs has no number of the group in its name.

    It becomes row ``group`` of ours, whose first axis is the groups.

    >>> {"tgt_embed.weight": OfGroup(0, "queries.embedding")}
    """

    group: int
    names: str | tuple[str, ...] | Transposed


@dataclass(frozen=True)
class OfGroups:
    """Our names of the tensors of several groups, where theirs have a number in their names.

    The first ``#`` of their name stands for that number, and ours have no wildcard for it. Their
    tensors are stacked on a new first axis of ours. ``first`` is the group whose number is 0.

    >>> {"enc_output.#.*": OfGroups("queries.heads.project.*")}  # 0, 1, ... are group 0, 1, ...
    >>> {"tgt_embed_dual.#.weight": OfGroups("queries.embedding", first=1)}  # 0 is group 1
    """

    names: str | tuple[str, ...] | Transposed
    first: int = 0


# What a table has for a name of theirs: our name, or several of ours, or none.
TableEntry = str | tuple[str, ...] | Transposed | OfGroup | OfGroups
# Their name -> what it becomes. See `Layout.names`.
Names = Mapping[str, TableEntry]
IdAndName = tuple[int, str]  # of a class: its original id and its name
RecipeFields = dict[str, Any]  # fields of a detector's recipe by name, each of its own type


def any_metadata(metadata: Metadata) -> bool:
    """True: the tensor names alone identify the layout."""
    return True


def unchanged(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return state


def accept(file: Checkpoint) -> None:
    """Accept every file."""


def recorded_image_size(file: Checkpoint) -> int | None:
    """Return the entry ``imgsz`` of the metadata, None if there is none."""
    return file.positive_int("imgsz")


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
    parts along its first axis. An empty tuple drops their tensor. `Transposed` stands for our names
    of a transposed matrix; it is transposed before it is split. `OfGroup` and `OfGroups` stack the
    tensors of several groups. The first entry that matches a name is used. If several of their
    tensors have the same name of ours, and are of the same group, they must be equal.

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
    # Raises `WeightsError` for a file with such names that this library leaves out.
    check: Callable[[Checkpoint], None] = accept
    # The entries of a file that have a moving average of the weights. Their own code evaluates the
    # first of them that the file has, so it is read instead of the weights of the last step.
    averages: tuple[str, ...] = ()
    # True if the class head may have one row more than there are classes. It is the last one.
    has_unused_class: bool = False
    # Returns the shortest side of the images in pixels, None if the file does not say it.
    image_size: Callable[[Checkpoint], int | None] = recorded_image_size
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

        `WeightsError` if this library leaves such files out, if the table lacks one of their names,
        if tensors that must be equal are not, if a tensor has not the shape that the layout relies
        on, or if a group lacks a tensor that another group has.
        """
        self.check(checkpoint)
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
        # (our name, group) -> their name and the tensor of this group
        group_tensors: dict[tuple[str, int], tuple[str, Tensor]] = {}
        unknown, unequal, too_many = [], [], []
        names = {**self.also_read, **self.names}
        for name, tensor in checkpoint.state.items():
            renamed = rename(name, names)
            if renamed is None:
                unknown.append(name)
                continue
            if renamed.group is not None and renamed.group >= MAX_GROUPS:
                too_many.append(name)
                continue
            for our_name, part in zip(renamed.names, renamed.parts(name, tensor)):
                if renamed.group is None:
                    known = ours.get(our_name)
                    ours[our_name] = part
                else:
                    _, known = group_tensors.get((our_name, renamed.group), (name, None))
                    group_tensors[our_name, renamed.group] = name, part
                if known is not None and not torch.equal(known, part):
                    unequal.append(name)
        where = checkpoint.where
        refuse(unknown, f"{self.title} has no", where)
        refuse(unequal, f"{self.title} has one tensor for several of these, which differ:", where)
        refuse(too_many, "a file has fewer groups than the numbers in these names say:", where)
        ours |= self._stack_groups(group_tensors, where)
        return replace(checkpoint, state=self.complete(ours))

    def _stack_groups(
        self, group_tensors: Mapping[tuple[str, int], tuple[str, Tensor]], where: str
    ) -> dict[str, Tensor]:
        """Return tensors of ours with the groups as their first axis.

        ``group_tensors`` has their name and the tensor for each name of ours and each group.
        `WeightsError` if a group lacks a tensor that another one has, or if the tensors of two
        groups have different shapes.
        """
        num_groups = 1 + max((group for _, group in group_tensors), default=-1)
        names = dict.fromkeys(our_name for our_name, _ in group_tensors)
        missing, other_shapes = [], []
        stacked = {}
        for our_name in names:
            tensors: list[Tensor] = []
            for group in range(num_groups):
                their_name, tensor = group_tensors.get((our_name, group), ("", None))
                if tensor is None:
                    missing.append((our_name, group))
                    continue
                if tensors and tensor.shape != tensors[0].shape:
                    shapes = f"{tuple(tensor.shape)} and not {tuple(tensors[0].shape)}"
                    other_shapes.append(f"{their_name} {shapes}")
                tensors.append(tensor)
            if not missing and not other_shapes:
                stacked[our_name] = torch.stack(tensors)
        refuse(self._names_of_groups(missing), f"the file has {num_groups} groups, but no", where)
        refuse(other_shapes, "of another shape than in the first group:", where)
        return stacked

    def _names_of_groups(self, tensors: Iterable[tuple[str, int]]) -> list[str]:
        """Return their names of tensors, given our name and the group of each."""

        @cache
        def entries_with(our_name: str) -> list[tuple[str, TableEntry, tuple[str, ...]]]:
            """Return the entries that have this name of ours, with the values of its wildcards."""
            found = []
            for pattern, entry in {**self.names, **self.also_read}.items():
                for template in _names_of(entry):
                    match = _compile(template).fullmatch(our_name)
                    if match:
                        found.append((pattern, entry, match.groups()))
            return found

        names = []
        for our_name, group in tensors:
            for pattern, entry, values in entries_with(our_name):
                if group in _groups_of(entry, group + 1):
                    names.append(_fill_pattern(pattern, entry, values, group))
                    break
        return names

    def has_axis_of_groups(self, our_name: str) -> bool:
        """True if the files have a tensor of every group for this one of ours.

        Then its first axis is the groups, in what `convert` returns and `revert` takes.
        """
        entries = [e for e in self.names.values() if isinstance(e, OfGroup | OfGroups)]
        templates = [template for entry in entries for template in _names_of(entry)]
        return any(_compile(template).fullmatch(our_name) for template in templates)

    def revert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors of ours under all names that a checkpoint of this layout has for them.

        Only tensors for which `has_axis_of_groups` is True have an axis of groups, of any number of
        them. Tensors for which the layout has no name are left out.
        """
        ours = self.undo_complete(dict(state))
        theirs: dict[str, Tensor] = {}
        for pattern, entry in self.names.items():
            templates = _names_of(entry)
            for name in ours if templates else ():
                match = _compile(templates[0]).fullmatch(name)
                if match is None:
                    continue
                for group in _groups_of(entry, len(ours[name]) if ours[name].ndim else 0):
                    their_name = _fill_pattern(pattern, entry, match.groups(), group)
                    # Of several entries that fit, a name is read by the first one.
                    renamed = rename(their_name, self.names)
                    if renamed is None or renamed.names[:1] != (name,) or renamed.group != group:
                        continue
                    parts = [ours[part] for part in renamed.names if part in ours]
                    if len(parts) == len(renamed.names) and self.is_written(their_name, ours):
                        theirs[their_name] = renamed.join(parts)
        return self.add_dropped(theirs)


@dataclass(frozen=True)
class Renamed:
    """What one tensor of theirs becomes."""

    names: tuple[str, ...]  # of ours, without wildcards; () if it is dropped
    is_transposed: bool = False
    group: int | None = None  # whose tensor it is; None if ours has no axis of groups

    def parts(self, name: str, tensor: Tensor) -> tuple[Tensor, ...]:
        """Return one tensor for each of our names, given theirs, which is called ``name``.

        `ValueError` or `RuntimeError` if its shape does not allow that.
        """
        if not self.names:
            return ()
        if self.is_transposed:
            tensor = tensor.t()
        parts = tensor.chunk(len(self.names)) if len(self.names) > 1 else (tensor,)
        if len(parts) != len(self.names):
            raise ValueError(f"{name} {tuple(tensor.shape)} is not {len(self.names)} parts")
        return tuple(parts)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Return their tensor, given one of ours for each of our names."""
        if self.group is not None:
            parts = [part[self.group] for part in parts]
        tensor = torch.cat(list(parts)) if len(parts) > 1 else parts[0]
        return tensor.t() if self.is_transposed else tensor


def rename(name: str, names: Names) -> Renamed | None:
    """Return what their tensor ``name`` becomes; None if the table does not have it."""
    for pattern, entry in names.items():
        match = _compile(pattern).fullmatch(name)
        if match is None:
            continue
        values = list(match.groups())
        group = None
        if isinstance(entry, OfGroup):
            group = entry.group
        elif isinstance(entry, OfGroups):
            # So long a number is not one of a group, and Python refuses to read a longer one.
            digits = values.pop(_position_of_number(pattern))
            group = entry.first + (int(digits) if len(digits) < 10 else MAX_GROUPS)
        our_names = tuple(_fill_wildcards(template, values) for template in _names_of(entry))
        return Renamed(our_names, _is_transposed(entry), group)
    return None


def with_prefixes(names: Names, theirs: str, ours: str) -> Names:
    """Return the table of a part under the part's prefixes: ``theirs`` and ``ours``."""
    return {f"{theirs}{name}": _with_prefix(entry, ours) for name, entry in names.items()}


def _with_prefix(entry: TableEntry, prefix: str) -> TableEntry:
    """Return an entry of a table with a prefix before each of our names."""
    if isinstance(entry, str):
        return f"{prefix}{entry}"
    if isinstance(entry, tuple):
        return tuple(f"{prefix}{name}" for name in entry)
    # What an entry with a prefix has inside is of the same kind as before.
    return replace(entry, names=_with_prefix(entry.names, prefix))  # type: ignore[arg-type]


def _names_of(entry: TableEntry) -> tuple[str, ...]:
    """Return our names in an entry of a table."""
    if isinstance(entry, OfGroup | OfGroups | Transposed):
        return _names_of(entry.names)
    return (entry,) if isinstance(entry, str) else entry


def _is_transposed(entry: TableEntry) -> bool:
    if isinstance(entry, OfGroup | OfGroups):
        return _is_transposed(entry.names)
    return isinstance(entry, Transposed)


def _groups_of(entry: TableEntry, num_groups: int) -> Sequence[int | None]:
    """Return the groups that an entry has tensors of, if there are ``num_groups``.

    It is [None] for an entry without groups.
    """
    if isinstance(entry, OfGroups):
        return range(entry.first, num_groups)
    if isinstance(entry, OfGroup):
        return [entry.group] if entry.group < num_groups else []
    return [None]


def _fill_pattern(pattern: str, entry: TableEntry, values: Sequence[str], group: int | None) -> str:
    """Return their name: a pattern with the values of our wildcards and the number of a group."""
    filled = list(values)
    if isinstance(entry, OfGroups):
        assert group is not None
        filled.insert(_position_of_number(pattern), str(group - entry.first))
    return _fill_wildcards(pattern, filled)


def _position_of_number(pattern: str) -> int:
    """Return which of the wildcards of a pattern is its first ``#``."""
    return re.findall(r"[#*]", pattern).index("#")


def _has_match(pattern: str, names: Iterable[str]) -> bool:
    return any(_compile(pattern).fullmatch(name) for name in names)


@cache
def _compile(pattern: str) -> re.Pattern[str]:
    """Return the regular expression of a pattern of a layout."""
    return re.compile(re.escape(pattern).replace(r"\#", r"(\d+)").replace(r"\*", "(.+)"))


def _fill_wildcards(template: str, values: Sequence[str]) -> str:
    """Replace the wildcards of ``template`` by the values, one after the other."""
    remaining = iter(values)
    return re.sub(r"[#*]", lambda _: next(remaining), template)


def refuse(names: Iterable[str], what: str, where: str) -> None:
    """Raise a `WeightsError` that lists the first ten names, unless there are none.

    ``what`` comes before the names, and ``where`` is the file.
    """
    names = sorted(names)
    if names:
        remedy = "check that the weights are of this detector and backbone"
        raise WeightsError(f"{what} {first_names(names)}", where, remedy)
