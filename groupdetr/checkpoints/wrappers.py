"""Removes what wrappers of a model put in front of the names of its tensors.

`DataParallel` saves every name as ``module.NAME``, Lightning as ``model.NAME``, and
`torch.compile` as ``_orig_mod.NAME``. Wrappers of single modules are in the middle of a name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from groupdetr.checkpoints.checkpoint import Checkpoint, first_names
from groupdetr.checkpoints.layout import Layout
from groupdetr.checkpoints.weights_file import AVERAGES

# Names of wrappers that no model has itself: of torch.compile, FSDP and gradient checkpointing.
INNER_WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
COUNTER = "n_averaged"  # a tensor of torch's AveragedModel, beside those of the model
MAX_PREFIXES = 4  # wrappers around one model
MAX_CANDIDATES = 8  # prefixes that are tried, of those that the names have


def unwrap(checkpoint: Checkpoint, layouts: Sequence[Layout]) -> Checkpoint:
    """Return a checkpoint without the prefixes of wrappers, so that it has one of the ``layouts``.

    It is returned as it is if it has one already, or if no prefix helps. A note says what was
    removed, and which tensors are left out because they have no such prefix.
    """
    state, inner = _without_inner_wrappers(checkpoint.state)
    notes = [f"removed {name!r} from the names of tensors" for name in inner]
    if _has_layout(state, layouts):
        return replace(checkpoint, state=state, notes=(*checkpoint.notes, *notes))
    prefix = ""
    for _ in range(MAX_PREFIXES):
        for candidate in _prefixes(state):
            wrapped = _without_prefix(state, candidate)
            if _has_layout(wrapped, layouts):
                prefix += candidate
                others = [name for name in state if not name.startswith(candidate)]
                notes.append(f"removed the prefix {prefix!r} from the names of tensors")
                if others:
                    notes.append(f"left out the tensors without it: {first_names(others)}")
                return replace(checkpoint, state=wrapped, notes=(*checkpoint.notes, *notes))
        # Several wrappers are around each other if all names have the prefix of the outer one.
        common = next(_prefixes(state), "")
        if not common or not all(name.startswith(common) for name in state if name != COUNTER):
            break
        prefix += common
        state = _without_prefix(state, common)
    return checkpoint


def _without_inner_wrappers(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Return a state without wrappers inside of names, and the names of those wrappers.

    The state is unchanged if two names would become one.
    """
    unwrapped: dict[str, Tensor] = {}
    removed: dict[str, None] = {}
    for name, tensor in state.items():
        removed.update(dict.fromkeys(INNER_WRAPPERS.findall(name)))
        unwrapped[INNER_WRAPPERS.sub("", name)] = tensor
    if len(unwrapped) != len(state):
        return dict(state), []
    return unwrapped, list(removed)


def _prefixes(state: Mapping[str, Tensor]) -> Iterator[str]:
    """Yield the first parts of names, such as ``model.``, the most frequent first.

    Those of moving averages come last.
    """
    counts = Counter(name.partition(".")[0] for name in state if "." in name)
    ordered = [part for part, _ in counts.most_common(MAX_CANDIDATES)]
    for part in sorted(ordered, key=lambda part: AVERAGES.search(part) is not None):
        yield f"{part}."


def _without_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, under their names without it."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in state.items()
        if name.startswith(prefix)
    }


def _has_layout(state: Mapping[str, Tensor], layouts: Sequence[Layout]) -> bool:
    return any(layout.fits(state) for layout in layouts)
