"""A table of learned queries with K groups, in the place of a query embedding of transformers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from groupdetr.huggingface.grouping import Grouping


class GroupedEmbedding(nn.Embedding):
    """A query embedding whose table has K*N rows in training mode, and N rows in `eval` mode.

    Detectors of transformers read ``weight``. The parameter of group 0 keeps the name ``weight`` in
    the state dict. Those of the other groups are ``other_groups`` [K-1,N,C]. So a checkpoint of a
    model with groups also contains the checkpoint of the plain model.
    """

    other_groups: nn.Parameter

    def __init__(self, original: Any, other_groups: Tensor, grouping: Grouping) -> None:
        nn.Module.__init__(self)
        # The original module is not copied: its parameter is the table of group 0.
        self.num_embeddings = original.num_embeddings
        self.embedding_dim = original.embedding_dim
        self.padding_idx = original.padding_idx
        self.max_norm = original.max_norm
        self.norm_type = original.norm_type
        self.scale_grad_by_freq = original.scale_grad_by_freq
        self.sparse = original.sparse
        self._parameters["weight"] = original.weight
        needs_gradient = original.weight.requires_grad
        self.other_groups = nn.Parameter(other_groups, requires_grad=needs_gradient)
        self.grouping = grouping
        self.train(original.training)

    @property
    def primary_group(self) -> nn.Parameter:
        """The table of group 0: [N,C]."""
        weight = self._parameters["weight"]
        assert weight is not None
        return weight

    @property
    def weight(self) -> Tensor:
        """[K*N,C] in training mode, [N,C] of group 0 in `eval` mode."""
        if not self.grouping.active:
            return self.primary_group
        # With K = 1 the other groups are an empty table. It is a part of the graph all the same:
        # DistributedDataParallel needs a gradient of every parameter.
        return torch.cat([self.primary_group, self.other_groups.flatten(0, 1)])

    @weight.setter
    def weight(self, value: Any) -> None:
        # torch sets it in the replicas of DataParallel, where it is not a parameter.
        self._parameters["weight"] = value
