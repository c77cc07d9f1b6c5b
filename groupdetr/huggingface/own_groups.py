"""The number of groups of detectors that transformers itself trains with groups.

LW-DETR and RF-DETR are trained with ``config.group_detr`` groups. Their tables of queries have the
rows of group 0 first, and their heads for proposals are lists with an entry for each group.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from groupdetr.huggingface.new_groups import NewGroup, perturbed

TABLES = ("reference_point_embed", "query_feat")
HEADS = ("enc_output", "enc_output_norm", "enc_out_bbox_embed", "enc_out_class_embed")


@torch.no_grad()
def set_num_groups(
    detector: Any, base: Any, num_groups: int, new_group: NewGroup = perturbed
) -> None:
    """Add groups to a detector, or remove the last ones, so that it has K of them.

    ``base`` is its base model.
    """
    for name in TABLES:
        table = getattr(base, name)
        groups = list(table.weight.split(base.num_queries))[:num_groups]
        # A new group is made from group 0 alone.
        setattr(base, name, _table(groups[0], table))
        while len(groups) < num_groups:
            groups.append(new_group(detector, base, name).weight)
        setattr(base, name, _table(torch.cat(groups), table))
    for name in HEADS:
        heads = list(getattr(base, name))[:num_groups]
        while len(heads) < num_groups:
            heads.append(_new_head(detector, base, name, new_group))
        setattr(base, name, nn.ModuleList(heads))
    base.group_detr = num_groups
    for module in detector.modules():
        config = getattr(module, "config", None)
        if config is not None and hasattr(config, "group_detr"):
            config.group_detr = num_groups


@torch.no_grad()
def make_primary(base: Any, group: int) -> None:
    """Exchange group 0 of a base model and another one."""
    for name in TABLES:
        groups = getattr(base, name).weight.split(base.num_queries)
        first, other = groups[0].clone(), groups[group].clone()
        groups[0].copy_(other)
        groups[group].copy_(first)
    for name in HEADS:
        heads = list(getattr(base, name))
        heads[0], heads[group] = heads[group], heads[0]
        setattr(base, name, nn.ModuleList(heads))


def _table(weight: torch.Tensor, like: nn.Embedding) -> nn.Embedding:
    """Return an embedding with these rows."""
    table = nn.Embedding.from_pretrained(weight.clone(), freeze=not like.weight.requires_grad)
    return table.train(like.training)


def _new_head(detector: Any, base: nn.Module, name: str, new_group: NewGroup) -> nn.Module:
    """Return a head like that of group 0, which is an entry of a list."""
    return new_group(detector, getattr(base, name), "0")
