"""Recipe fields that the metadata of a file of weights give, and what they must not say."""

from __future__ import annotations

from collections.abc import Mapping

from groupdetr.checkpoints.checkpoint import Checkpoint, Metadata
from groupdetr.checkpoints.layout import RecipeFields
from groupdetr.console.text import quote
from groupdetr.errors import WeightsError

# The entry of a file of this library, with the classes of a data set that is not COCO
CATEGORIES = "categories"


def named_fields(names: Mapping[str, str], metadata: Metadata) -> RecipeFields:
    """Return the recipe fields that metadata have. ``names``: their name -> recipe field."""
    return {ours: metadata[theirs] for theirs, ours in names.items() if theirs in metadata}


def expect_values(values: Mapping[str, object], metadata: Metadata, where: str) -> None:
    """Raise `WeightsError` if an entry of metadata has another value than the one in ``values``.

    These are entries that no tensor shows, and the only value that our network computes. An entry
    may be missing. ``where`` is the file.
    """
    for name, ours in values.items():
        theirs = metadata.get(name, ours)
        if theirs != ours:
            raise WeightsError(
                f"{name} is {theirs!r} in the metadata of this file, and groupdetr supports only "
                f"{ours!r}",
                where,
                "use other weights",
            )


def r50_or_dc5(family: str, dilation: str, file: Checkpoint) -> str:
    """Return the preset: ``family``-r50 or ``family``-r50-dc5.

    Both have the same tensors. Only the entry ``dilation`` of the metadata distinguishes them.
    """
    r50, dc5 = f"{family}-r50", f"{family}-r50-dc5"
    if dilation not in file.metadata:
        raise WeightsError(
            f"the file does not say if it is {r50} or {dc5}",
            file.where,
            f"name the model: groupdetr import {quote(file.where)} --model {r50} "
            f"(Python: preset={r50!r})",
        )
    is_dilated = file.metadata[dilation]
    if not isinstance(is_dilated, bool):
        raise TypeError(f"{dilation} is a {type(is_dilated).__name__}, not true or false")
    return dc5 if is_dilated else r50
