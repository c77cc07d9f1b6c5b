"""Group DETR, the paper, in one file (Chen et al., ICCV 2023, arXiv 2207.13085).

A detector is trained with K groups of object queries and used with one. In this library the groups are an axis:
every query-shaped tensor is [B,K,N,C], and a plain DETR is K = 1. What follows is all that knows about groups.

=====================  ================================================================================
in the paper           here
=====================  ================================================================================
Q_1 ... Q_K            axis 1 of every [B,K,N,C]
SA(Q_k), Eq. 5         `separately`: self-attention within each group, which share all their weights
CA(Q, X), Eq. 4        `end_to_end`: the K*N queries look at one memory X, which no group repeats
sigma_k, Eq. 6         `match_groups`: one-to-one assignment within each group
(1/K) sum_k L_k, Eq. 7 `mean_over_groups`: the normaliser of every loss
inference, Sec. 3.2    `kept_at_inference`: the primary group alone, at the cost of a plain DETR
DN-DETR w/ Group       `denoise_in_all`: denoising queries in front of every group (Table 3, Fig. 8)
=====================  ================================================================================

Table 7 is a choice among these functions:

====================================  =================  ================  =======================
row                                   self-attention     assignment        groups at inference
====================================  =================  ================  =======================
(a) one-to-one, K = 1                 `separately`       `match_groups`    the only one
(b) naive one-to-many                 `jointly`          `match_naively`   all of them
(c) groups, no separate attention     `jointly`          `match_groups`    the primary one
(d) Group DETR                        `separately`       `match_groups`    the primary one
====================================  =================  ================  =======================
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from groupdetr.ops.assignment import assign
from groupdetr.structures.assignment import Assignment

Attention = Callable[
    [Tensor, Tensor, Tensor | None], Tensor
]  # (content [...,N,C], position, blocked [N,N]) -> content
Compete = Callable[[Attention, Tensor, Tensor, Tensor | None], Tensor]
Match = Callable[[np.ndarray, Sequence[int]], Assignment]
Denoise = Callable[[int], int]


def separately(
    attention: Attention, content: Tensor, position: Tensor, blocked: Tensor | None = None
) -> Tensor:
    """Self-attention within each group (Eq. 5): leading axes are batch, so no query sees another group. [B,K,N,C]

    ``blocked`` [N,N] bool, the same in every group: True where a query (row) does not see another (column).
    """
    return attention(content, position, blocked)


def jointly(
    attention: Attention, content: Tensor, position: Tensor, blocked: Tensor | None = None
) -> Tensor:
    """Self-attention over all K*N queries at once (Table 7 b and c). [B,K,N,C]

    What is ``blocked`` within a group is blocked there; of other groups a query sees what its last query sees of its
    own, so nobody sees another group's denoising queries.
    """
    num_groups, num_queries = content.shape[1:3]
    if blocked is not None:
        others = blocked[-1].expand(num_groups, num_queries, num_groups, num_queries).clone()
        others.diagonal(dim1=0, dim2=2).copy_(blocked.unsqueeze(-1).expand(-1, -1, num_groups))
        blocked = others.reshape(num_groups * num_queries, -1)
    joined = attention(
        content.flatten(1, 2).unsqueeze(1), position.flatten(1, 2).unsqueeze(1), blocked
    )
    return joined.reshape(content.shape)


def end_to_end(queries: Tensor) -> Tensor:
    """Groups laid end to end, [B,K,N,C] -> [B,K*N,C], to look at a memory that has no group axis (Eq. 4)."""
    return queries.flatten(1, 2)


def kept_at_inference(group: int | None) -> slice:
    """The groups that inference runs, of a table [K,...]: the chosen one as [1,...], or all if ``group`` is None.

    Training is symmetric in the groups, so any will do (Fig. 4); by convention the primary group is group 0.
    """
    return slice(None) if group is None else slice(group, group + 1)


def denoise_in_all(groups: int) -> int:
    """In how many groups, from the first, objects are denoised: all, each with its own noise, so that the sequence of
    group k is [DN_k | Q_k] and K groups are K DN-DETRs (Eq. 6 read literally; Table 3, DN-DETR w/ Group)."""
    return groups


def denoise_in_primary(groups: int) -> int:
    """In the primary group alone: the other reading of Sec. 3.2."""
    return min(groups, 1)


def match_groups(costs: np.ndarray, counts: Sequence[int]) -> Assignment:
    """One-to-one assignment within each group (Eq. 6): K independent problems for each stage and image.

    ``costs`` [L,B,K,T,N] finite; ``counts`` [B] objects of each image, the rest of T is padding. An object has one
    query in every group, K in all.
    """
    stages, _, num_groups, _, _ = costs.shape
    images = []
    for image, count in enumerate(counts):
        target, query = assign(costs[:, image, :, :count])
        group = np.broadcast_to(np.arange(num_groups)[:, None], target.shape)
        images.append((np.full(group.shape, image), group, query, target))
    return _assignment(images, stages)


def match_naively(costs: np.ndarray, counts: Sequence[int]) -> Assignment:
    """Naive one-to-many (Table 7 b): K copies of every object, assigned one-to-one among all K*N queries.

    ``costs`` and ``counts`` as in `match_groups`.
    """
    stages, _, num_groups, _, num_queries = costs.shape
    images = []
    for image, count in enumerate(counts):
        everyone = (
            costs[:, image, :, :count]
            .swapaxes(1, 2)
            .reshape(stages, count, num_groups * num_queries)
        )
        row, column = assign(np.tile(everyone, (1, num_groups, 1)))
        group, query = np.unravel_index(column, (num_groups, num_queries))
        images.append((np.full(group.shape, image), group, query, row % max(count, 1)))
    return _assignment(images, stages)


def _assignment(images: Sequence[tuple[np.ndarray, ...]], stages: int) -> Assignment:
    """Each image's (image, group, query, target), [L,...] each, as one Assignment [L,M]."""
    columns = (
        np.concatenate([x.reshape(stages, -1) for x in column], axis=1) for column in zip(*images)
    )
    return Assignment.of(*columns)


def mean_over_groups(groups: int, mean_objects: Tensor) -> Tensor:
    """What losses summed over K groups are divided by: K * max(1, objects of a batch, averaged over ranks) (Eq. 7).

    Clamped before the K: the authors' own branch clamps after it, which multiplies the background loss of a batch
    without any object by K.
    """
    return groups * mean_objects.clamp(min=1)
