"""Group DETR, the paper, in one file (Chen et al., ICCV 2023, arXiv 2207.13085).

A detector is trained with K groups of object queries and used with one of them. In this library
the groups are an axis: every tensor of queries is [B,K,N,C], and a plain DETR has K = 1. What the
paper does with the groups is done by the functions of this file.

======================  =========================================================================
in the paper            in this file
======================  =========================================================================
Q_1 ... Q_K             axis 1 of every tensor of queries [B,K,N,C]
SA(Q_k), Eq. 5          `attend_within_groups`: self-attention within each group, shared weights
CA(Q, X), Eq. 4         `flatten_groups`: all K*N queries attend to one memory X, never repeated
sigma_k, Eq. 6          `match_groups`: one-to-one assignment within each group
(1/K) sum_k L_k, Eq. 7  `loss_normaliser`: what the summed losses of all groups are divided by
inference, Sec. 3.2     `inference_groups`: the primary group alone, at the cost of a plain DETR
DN-DETR w/ Group        `denoise_all_groups`: denoising losses in every group (Table 3, Fig. 8)
======================  =========================================================================

Each row of Table 7 is a choice among these functions (``groupdetr train --model table7/b``):

===============================  ======================  ===============  =====================
row of Table 7                   self-attention          assignment       groups at inference
===============================  ======================  ===============  =====================
(a) one-to-one, K = 1            `attend_within_groups`  `match_groups`   the only one
(b) naive one-to-many            `attend_across_groups`  `match_naively`  all of them
(c) no separate self-attention   `attend_across_groups`  `match_groups`   the primary one
(d) Group DETR                   `attend_within_groups`  `match_groups`   the primary one
===============================  ======================  ===============  =====================

The letters of the axes are those of `groupdetr.structures`: B images, K groups, N queries of a
group, C channels, L supervised layers, T objects of an image, M matched pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from groupdetr.ops.assignment import assign
from groupdetr.structures.assignment import Assignment

# (content [...,N,C], position [...,N,C], blocked [N,N] or None) -> [...,N,C]
Attention = Callable[[Tensor, Tensor, Tensor | None], Tensor]
# (attention, content [B,K,N,C], position [B,K,N,C], blocked [N,N] or None) -> [B,K,N,C]
GroupAttention = Callable[[Attention, Tensor, Tensor, Tensor | None], Tensor]
# (costs [L,B,K,T,N], number of objects of each image) -> assignment
Match = Callable[[np.ndarray, Sequence[int]], Assignment]
# number of groups K -> number of groups with a denoising loss, counted from the first
Denoise = Callable[[int], int]


# Self-attention and cross-attention


def attend_within_groups(
    attention: Attention, content: Tensor, position: Tensor, blocked: Tensor | None = None
) -> Tensor:
    """Run self-attention within each group (Eq. 5): [B,K,N,C] -> [B,K,N,C].

    The attention treats all leading axes as batch, so no query attends to another group.
    ``blocked`` [N,N] bool, the same in every group, is True where a query (row) does not attend to
    another (column).
    """
    return attention(content, position, blocked)


def attend_across_groups(
    attention: Attention, content: Tensor, position: Tensor, blocked: Tensor | None = None
) -> Tensor:
    """Run self-attention over all K*N queries at once (Table 7 b and c): [B,K,N,C] -> [B,K,N,C].

    ``blocked`` [N,N] bool holds within every group. In the other groups, no query attends to what
    the last query of its group does not attend to. The last one is a matching query, so no query
    attends to the denoising queries of another group.
    """
    if blocked is not None:
        num_groups = content.shape[1]
        blocked = _blocked_across_groups(blocked, num_groups)
    # Now the groups are one long sequence, [B,1,K*N,C].
    content_of_all = content.flatten(1, 2).unsqueeze(1)
    position_of_all = position.flatten(1, 2).unsqueeze(1)
    attended = attention(content_of_all, position_of_all, blocked)
    return attended.reshape(content.shape)


def _blocked_across_groups(blocked: Tensor, num_groups: int) -> Tensor:
    """Return the mask [K*N,K*N] of all queries from the mask [N,N] of one group."""
    num_queries = len(blocked)
    shape = (num_groups, num_queries, num_groups, num_queries)
    # Between two groups: the row of the last query, for every query.
    all_pairs = blocked[-1].expand(shape).clone()
    # Within a group: the mask itself. The diagonal of the two group axes has the shape [N,N,K].
    within_groups = all_pairs.diagonal(dim1=0, dim2=2)
    within_groups.copy_(blocked.unsqueeze(-1).expand(-1, -1, num_groups))
    return all_pairs.reshape(num_groups * num_queries, num_groups * num_queries)


def flatten_groups(queries: Tensor) -> Tensor:
    """Concatenate the groups: [B,K,N,C] -> [B,K*N,C].

    In this shape they attend to a memory that has no group axis (Eq. 4).
    """
    return queries.flatten(1, 2)


# Groups at inference


def inference_groups(group: int | None) -> slice:
    """Return the slice of the groups that inference runs; it indexes a table [K,...].

    It selects one ``group``, as [1,...], or all of them if ``group`` is None. Training treats all
    groups alike, so each of them detects equally well (Fig. 4). By convention the primary group is
    group 0.
    """
    if group is None:
        return slice(None)
    return slice(group, group + 1)


# Denoising


def denoise_all_groups(num_groups: int) -> int:
    """Return K: the denoising queries of all groups have a loss, each group with its own noise.

    The sequence of group k is [DN_k | Q_k], so K groups are K DN-DETRs. This is the literal
    reading of Eq. 6 (DN-DETR w/ Group in Table 3).
    """
    return num_groups


def denoise_primary_group(num_groups: int) -> int:
    """Return 1: only the denoising queries of the primary group have a loss.

    This is the other reading of Sec. 3.2.
    """
    return min(num_groups, 1)


# Assignment


def match_groups(costs: np.ndarray, counts: Sequence[int]) -> Assignment:
    """Assign objects to queries one-to-one within each group (Eq. 6).

    These are K independent problems for each layer and image. An object is assigned to one query
    of every group, to K queries in total. ``costs`` [L,B,K,T,N] must be finite. ``counts`` [B] are
    the numbers of objects of the images; the remaining rows of T are padding.
    """
    num_layers, _, num_groups, _, _ = costs.shape
    pairs_of_images = []
    for image, count in enumerate(counts):
        target, query = assign(costs[:, image, :, :count])  # [L,K,M] each
        group = np.broadcast_to(np.arange(num_groups)[:, None], target.shape)
        pairs_of_images.append((np.full_like(target, image), group, query, target))
    return _concatenate(pairs_of_images, num_layers)


def match_naively(costs: np.ndarray, counts: Sequence[int]) -> Assignment:
    """Assign K copies of every object one-to-one to all K*N queries (Table 7 b).

    This is the naive one-to-many assignment. ``costs`` and ``counts`` as in `match_groups`.
    """
    num_layers, _, num_groups, _, num_queries = costs.shape
    pairs_of_images = []
    for image, count in enumerate(counts):
        # [L,K,T,N] -> [L,T,K*N]: the costs of every object for the queries of all groups
        costs_of_objects = costs[:, image, :, :count].swapaxes(1, 2)
        costs_of_objects = costs_of_objects.reshape(num_layers, count, num_groups * num_queries)
        # [L,K*T,K*N]: K copies of all objects; row r is a copy of object r modulo T
        copy, column = assign(np.tile(costs_of_objects, (1, num_groups, 1)))
        target = copy % max(count, 1)
        group, query = np.unravel_index(column, (num_groups, num_queries))
        pairs_of_images.append((np.full_like(target, image), group, query, target))
    return _concatenate(pairs_of_images, num_layers)


def _concatenate(pairs_of_images: Sequence[tuple[np.ndarray, ...]], num_layers: int) -> Assignment:
    """Concatenate the pairs of all images along M.

    The pairs of an image are four arrays [L,...]: indices of image, group, query and target.
    """
    columns = []
    for arrays in zip(*pairs_of_images):
        flattened = [array.reshape(num_layers, -1) for array in arrays]
        columns.append(np.concatenate(flattened, axis=1))
    image, group, query, target = columns
    return Assignment.from_columns(image, group, query, target)


# Loss


def loss_normaliser(num_groups: int, mean_objects: Tensor) -> Tensor:
    """Return what the losses summed over K groups are divided by: K * max(1, objects) (Eq. 7).

    ``mean_objects`` is the number of objects of a batch, averaged over ranks. It is clamped before
    it is multiplied by K. The authors' own branch clamps afterwards, which multiplies the
    background loss of a batch without objects by K.
    """
    return num_groups * mean_objects.clamp(min=1)
