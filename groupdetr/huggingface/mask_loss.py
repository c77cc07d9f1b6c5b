"""The mean of the loss over the groups, for detectors whose loss is a module (Mask2Former).

Their loss module returns the terms of the loss by name. The detector weights and adds them.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from groupdetr.huggingface.grouping import Grouping
from groupdetr.huggingface.loss import mean_terms


class GroupedCriterion:
    """Hooks that let a loss module compute the loss of every group.

    The module is called by the detector for group 0. The hook after it computes the other groups.
    """

    def __init__(self, grouping: Grouping) -> None:
        self.grouping = grouping
        # The arguments of the other groups, from the hook before the module to the one after it
        self._arguments: list[dict[str, Any]] = []

    def attach(self, criterion: nn.Module) -> None:
        """Let the module compute the mean over the groups in training mode."""
        self.grouping.before(criterion, self._keep_primary_group)
        self.grouping.after(criterion, self._average_groups)

    def _keep_primary_group(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if not self.grouping.active:
            return None
        arguments = inspect.signature(module.forward).bind(*args, **kwargs).arguments
        num_groups = self.grouping.num_groups
        groups: list[dict[str, Any]] = [{} for _ in range(num_groups)]
        for name, value in arguments.items():
            labels = name in ("mask_labels", "class_labels")
            parts = [value] * num_groups if labels else split_queries(value, num_groups)
            for group, part in zip(groups, parts, strict=True):
                group[name] = part
        primary, *self._arguments = groups
        return (), primary

    def _average_groups(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        if not self.grouping.active:
            return output
        arguments, self._arguments = self._arguments, []
        return mean_terms([output, *(module.forward(**group) for group in arguments)])


def split_queries(value: Any, num_groups: int) -> list[Any]:
    """Split predictions [B,K*N,...], in any lists and dicts, into those of the groups: [K]."""
    if isinstance(value, Tensor):
        return list(value.chunk(num_groups, dim=1))
    if isinstance(value, dict):
        parts = {name: split_queries(entry, num_groups) for name, entry in value.items()}
        return [{name: part[k] for name, part in parts.items()} for k in range(num_groups)]
    if isinstance(value, list | tuple):
        entries = [split_queries(entry, num_groups) for entry in value]
        return [[entry[k] for entry in entries] for k in range(num_groups)]
    return [value] * num_groups
