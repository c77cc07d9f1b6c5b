"""Batch norms of a training with several processes."""

from __future__ import annotations

import torch
from torch import nn

from groupdetr.errors import UsageError
from groupdetr.modeling.frozen import trained_batch_norms


def synchronise_batch_norms(model: nn.Module, device: torch.device) -> None:
    """Let the batch norms that are trained take the statistics of the images of all processes.

    They are replaced in place. Their parameters stay the same objects, so an optimizer still has
    them, and the names of the state stay as they are. `UsageError` on a device where PyTorch cannot
    do that.
    """
    norms = trained_batch_norms(model)
    if not norms:
        return
    if device.type == "cpu":
        raise UsageError(
            f"the batch norm {norms[0]} is trained, and PyTorch cannot synchronise batch norms "
            "of several processes on a CPU",
            remedy="fix the batch norms with --set freeze_norms=true, or start one process",
        )
    nn.SyncBatchNorm.convert_sync_batchnorm(model)
