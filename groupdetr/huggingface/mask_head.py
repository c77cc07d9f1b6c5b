"""The masks of K groups from the mask head of DETR's segmentation.

The head returns a mask for every query of every image, and the detector gives them a shape with the
number of queries of its configuration, N. So the masks of the K groups are stacked along their
height until the detector has returned them.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from groupdetr.huggingface.grouping import Grouping


class GroupedMaskHead:
    """Hooks that pass the masks of K groups through the code of a detector with N queries."""

    def __init__(self, grouping: Grouping) -> None:
        self.grouping = grouping

    def attach(self, mask_head: nn.Module) -> None:
        """Let the detector return masks of all groups in training mode."""
        self.grouping.after(mask_head, self._stack_groups)
        self.grouping.after(self.grouping.model, self._unstack_groups)

    def _stack_groups(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        """[B*K*N,1,h,w] -> [B*N,1,K*h,w]."""
        if not self.grouping.active:
            return output
        shape = (-1, self.grouping.num_groups, self.grouping.num_queries)
        groups = output.squeeze(1).unflatten(0, shape)  # [B,K,N,h,w]
        return groups.transpose(1, 2).flatten(2, 3).flatten(0, 1).unsqueeze(1)

    def _unstack_groups(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        """Turn the masks that the detector returns, [B,N,K*h,w], into [B,K*N,h,w]."""
        if self.grouping.active:
            masks = self.grouping.require_named(output)["pred_masks"].unflatten(
                2, (self.grouping.num_groups, -1)
            )
            output["pred_masks"] = masks.transpose(1, 2).flatten(1, 2)
        return output
