"""Group DETR, the paper, in one file (Chen et al., ICCV 2023, arXiv 2207.13085).

A detector is trained with K groups of object queries and used with one of them. In this library
the groups are an axis: every tensor of queries is [B,K,N,C], and a plain DETR has K = 1. What the
paper does with the groups is done by the functions of this file.

======================  =========================================================================
in the paper            in this file
======================  =========================================================================
Q_1 ... Q_K             axis 1 of every tensor of queries [B,K,N,C]
SA(Q_k), Eq. 5          `attend_within_groups`: self-attention within each group, shared weights;
                        `MultiheadAttentionWithinGroups`: the same for a decoder of your own
CA(Q, X), Eq. 4         `flatten_groups`: all K*N queries attend to one memory X, never repeated
sigma_k, Eq. 6          `match_groups`: one-to-one assignment within each group
(1/K) sum_k L_k, Eq. 7  `loss_normaliser`: what the summed losses of all groups are divided by
inference, Sec. 3.2     `inference_groups`: the primary group alone, at the cost of a plain DETR
DN-DETR w/ Group        `denoise_all_groups`: denoising losses in every group (Table 3, Fig. 8)
======================  =========================================================================

Each row of Table 7 is a choice among these functions (``groupdetr train --model table7/b``). A
recipe has their names as fields: ``--set group_attention=attend_across_groups``.

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
from typing import Any, Self

import numpy as np
from torch import Tensor, nn

from groupdetr.ops.assignment import assign
from groupdetr.structures.assignment import Assignment
from groupdetr.structures.tensor_dataclass import require, require_count

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
    attention: Attention | nn.MultiheadAttention,
    content: Tensor,
    position: Tensor,
    blocked: Tensor | None = None,
) -> Tensor:
    """Run self-attention within each group (Eq. 5): [B,K,N,C] -> [B,K,N,C].

    The attention treats all leading axes as batch, so no query attends to another group. It may be
    a stock `nn.MultiheadAttention`; as in DETR, its query and key are content + position, and its
    value is the content. For flat queries [B,K*N,C] see `MultiheadAttentionWithinGroups`.
    ``blocked`` [N,N] bool, the same in every group, is True where a query (row) does not attend to
    another (column).

    >>> attention = torch.nn.MultiheadAttention(256, num_heads=8, batch_first=True)
    >>> content, position = torch.rand(2, 11, 300, 256), torch.rand(1, 11, 300, 256)
    >>> groupdetr.attend_within_groups(attention, content, position).shape
    torch.Size([2, 11, 300, 256])
    """
    require(
        content.ndim == 4,
        f"content must be [B,K,N,C], not {list(content.shape)}; of flat queries [B,K*N,C] it is "
        "content.unflatten(1, (K, -1))",
    )
    if isinstance(attention, nn.MultiheadAttention):
        # Its batch has one axis: every group of every image is a sequence of its own.
        batch_axis = 0 if attention.batch_first else 1
        queries = (content + position).flatten(0, 1).movedim(0, batch_axis)
        values = content.flatten(0, 1).movedim(0, batch_axis)
        attended, _ = attention(queries, queries, values, attn_mask=blocked, need_weights=False)
        return attended.movedim(batch_axis, 0).reshape(content.shape)
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


class MultiheadAttentionWithinGroups(nn.MultiheadAttention):
    """`nn.MultiheadAttention` as self-attention within groups of ``num_queries`` queries (Eq. 5).

    It replaces the self-attention of a decoder that was written without groups, such as that of
    `nn.TransformerDecoderLayer`. It has the same parameters, and it takes the same arguments: flat
    queries [B,K*N,C], or [K*N,B,C] if ``batch_first`` is False, group after group. The groups
    become a part of the batch: the attention computes B*K sequences of N queries each.

    K is not an option: it is the number of queries that come in, divided by N. So K groups in
    training and one group at inference need no switch.

    >>> layer = torch.nn.TransformerDecoderLayer(d_model=256, nhead=8)
    >>> decoder = torch.nn.TransformerDecoder(layer, num_layers=6)
    >>> for layer in decoder.layers:
    ...     layer.self_attn = MultiheadAttentionWithinGroups.convert(layer.self_attn, 300)
    """

    def __init__(self, embed_dim: int, num_heads: int, num_queries: int, **options: Any) -> None:
        """``num_queries`` is N, the queries of a group. ``options`` of `nn.MultiheadAttention`."""
        require_count("num_queries", num_queries)
        super().__init__(embed_dim, num_heads, **options)
        self.num_queries = num_queries
        self._expect_a_call()

    @classmethod
    def convert(cls, attention: nn.MultiheadAttention, num_queries: int) -> Self:
        """Return a module with the options, the parameters and the hooks of ``attention``.

        The parameters are not copied, and their names stay the same, so the checkpoints of both
        modules are interchangeable. Neither are the hooks: their handles remove them from both.

        `ValueError` if keys or values have another width than queries, which is not self-attention,
        or if ``attention`` is no `nn.MultiheadAttention`, or one with a ``forward`` or with
        parametrized weights of its own, which would be lost.
        """
        require(
            isinstance(attention, nn.MultiheadAttention),
            f"attention must be an nn.MultiheadAttention, not {type(attention).__name__}; for "
            "another class, docs/own-detr.md says how to reshape its queries",
        )
        forwards = (nn.MultiheadAttention.forward, MultiheadAttentionWithinGroups.forward)
        require(
            type(attention).forward in forwards and "forward" not in vars(attention),
            f"this {type(attention).__name__} has a forward method of its own, which would be "
            "lost; docs/own-detr.md says how to reshape its queries",
        )
        require(
            attention.in_proj_weight is not None,
            "self-attention needs queries, keys and values of the same width, "
            f"not {attention.embed_dim}, {attention.kdim} and {attention.vdim}",
        )
        own = (attention.in_proj_weight, attention.in_proj_bias, attention.bias_k, attention.bias_v)
        require(
            all(weight is None or isinstance(weight, nn.Parameter) for weight in own),
            f"weights of this {type(attention).__name__} are computed from other parameters, such "
            "as by torch.nn.utils.parametrize; convert the attention before",
        )
        # Parameters on the device "meta" use no memory and no random numbers. They are replaced.
        within_groups = cls(
            attention.embed_dim,
            attention.num_heads,
            num_queries,
            dropout=attention.dropout,
            bias=attention.in_proj_bias is not None,
            add_bias_kv=attention.bias_k is not None,
            add_zero_attn=attention.add_zero_attn,
            batch_first=attention.batch_first,
            device="meta",
        )
        within_groups.in_proj_weight = attention.in_proj_weight
        within_groups.in_proj_bias = attention.in_proj_bias
        within_groups.out_proj = attention.out_proj
        within_groups.bias_k = attention.bias_k
        within_groups.bias_v = attention.bias_v
        # A handle of a hook knows the table that its module keeps the hook in.
        for name, hooks in vars(attention).items():
            if "_hook" in name and hooks:
                setattr(within_groups, name, hooks)
        within_groups._expect_a_call()
        return within_groups.train(attention.training)

    def _expect_a_call(self) -> None:
        """Have a hook, because modules with hooks are called.

        In evaluation mode, an `nn.TransformerEncoderLayer` reads the parameters of its attention
        and does not call it, unless it has hooks.
        """
        if _change_nothing not in self._forward_pre_hooks.values():
            self.register_forward_pre_hook(_change_nothing)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the attended queries in the shape of ``query``, and the attention weights.

        The arguments are those of `nn.MultiheadAttention`. ``attn_mask`` [N,N] is the same in every
        group. The weights [B*K,...] are those of every group of image 0, then of image 1, and so
        on. `ValueError` if the number of queries is not a multiple of N.
        """
        require(query.ndim == 3, f"queries must have three axes, not {tuple(query.shape)}")
        if attn_mask is not None:
            size = (self.num_queries, self.num_queries)
            require(
                attn_mask.shape[-2:] == size,
                f"attn_mask must be {list(size)}, the mask of one group, "
                f"not {list(attn_mask.shape)}",
            )
        if key_padding_mask is not None:
            key_padding_mask = self._groups_as_batch(key_padding_mask, batch_axis=0)

        # Where query, key and value are one tensor, torch projects all three with one matrix
        # product. So they stay one tensor.
        batch_axis = 0 if self.batch_first else 1
        queries = self._groups_as_batch(query, batch_axis)
        keys = queries if key is query else self._groups_as_batch(key, batch_axis)
        values = keys if value is key else self._groups_as_batch(value, batch_axis)
        attended, weights = super().forward(
            queries,
            keys,
            values,
            key_padding_mask=key_padding_mask,
            need_weights=need_weights,
            attn_mask=attn_mask,
            average_attn_weights=average_attn_weights,
            is_causal=is_causal,
        )
        return self._groups_as_queries(attended, query.shape[batch_axis]), weights

    def _groups_as_batch(self, x: Tensor, batch_axis: int) -> Tensor:
        """[B,K*N,...] -> [B*K,N,...], or [K*N,B,...] -> [N,B*K,...] if the batch axis is 1."""
        query_axis = 1 - batch_axis
        require(
            x.shape[query_axis] % self.num_queries == 0,
            f"{x.shape[query_axis]} queries cannot be split into groups of {self.num_queries}",
        )
        # The axis of the queries is split before the axes are moved. A reshape of the flat tensor
        # to the new shape would put queries of different groups, or of different images, into one
        # sequence.
        groups = x.unflatten(query_axis, (-1, self.num_queries))
        if batch_axis == 0:
            return groups.flatten(0, 1)
        return groups.movedim(0, 2).flatten(1, 2)  # [K,N,B,...] -> [N,B,K,...] -> [N,B*K,...]

    def _groups_as_queries(self, x: Tensor, num_images: int) -> Tensor:
        """Return the shape that `_groups_as_batch` was given. ``num_images`` is B."""
        if self.batch_first:
            return x.unflatten(0, (num_images, -1)).flatten(1, 2)
        groups = x.unflatten(1, (num_images, -1))  # [N,B,K,C]
        return groups.movedim(2, 0).flatten(0, 1)


def _change_nothing(_module: nn.Module, _args: tuple[Any, ...]) -> None:
    """A hook before a forward pass that keeps its arguments."""


def flatten_groups(queries: Tensor) -> Tensor:
    """Concatenate the groups: [B,K,N,C] -> [B,K*N,C].

    In this shape they attend to a memory that has no group axis (Eq. 4).
    """
    return queries.flatten(1, 2)


# Groups at inference


def inference_groups(group: int | tuple[int, ...] | None) -> slice | list[int]:
    """Return the groups that inference runs as an index of a table [K,...].

    It selects one ``group``, as [1,...], several of them, or all of them if ``group`` is None.
    Training treats all groups alike, so each of them detects equally well (Fig. 4). By convention
    the primary group is group 0.
    """
    if group is None:
        return slice(None)
    if isinstance(group, tuple):
        return list(group)
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

    >>> costs = np.random.rand(6, 2, 11, 3, 300)  # of six layers, two images, eleven groups
    >>> assignment = groupdetr.match_groups(costs, counts=[3, 1])  # three objects, and one
    >>> assignment.query.shape  # M = 11 * (3 + 1)
    torch.Size([6, 44])
    """
    require_costs(costs, counts)
    num_layers, _, num_groups, _, _ = costs.shape
    pairs_of_images = []
    for image, count in enumerate(counts):
        target, query = assign(costs[:, image, :, :count])  # [L,K,M] each
        group = np.broadcast_to(np.arange(num_groups)[:, None], target.shape)
        pairs_of_images.append((np.full_like(target, image), group, query, target))
    return _concatenate(pairs_of_images, num_layers)


def require_costs(costs: np.ndarray, counts: Sequence[int]) -> None:
    """Raise `ValueError` unless costs are [L,B,K,T,N] and counts are B numbers of 0 to T."""
    require(
        isinstance(costs, np.ndarray) and costs.ndim == 5,
        "costs must be a NumPy array [L,B,K,T,N], "
        f"not {type(costs).__name__} {list(getattr(costs, 'shape', ''))}",
    )
    images, objects = costs.shape[1], costs.shape[3]
    require(
        len(counts) == images,
        f"counts must be the numbers of objects of {images} images, not {list(counts)}",
    )
    for count in counts:
        require_count("a count of objects", count, lowest=0)
        require(count <= objects, f"counts are {list(counts)}, but costs have {objects} objects")


def match_naively(costs: np.ndarray, counts: Sequence[int]) -> Assignment:
    """Assign K copies of every object one-to-one to all K*N queries (Table 7 b).

    This is the naive one-to-many assignment. ``costs`` and ``counts`` as in `match_groups`.
    """
    require_costs(costs, counts)
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


def loss_normaliser(num_groups: int, num_objects: Tensor, parts: int = 1) -> Tensor:
    """Return what the losses summed over K groups are divided by: K * max(1, objects) (Eq. 7).

    ``num_objects`` is the number of objects of all images of an optimizer step. It is clamped
    before it is multiplied by K. The authors' own branch clamps afterwards, which multiplies the
    background loss of a batch without objects by K.

    A step may be divided into ``parts``, which are micro-batches or processes. The loss of the
    step is the mean of the losses of its parts, so every part divides by its share of the number.
    The number is clamped for the whole step, and therefore the loss does not depend on the number
    of parts. Published code clamps the mean of the processes instead. There, the loss of a step
    with fewer objects than processes becomes the smaller the more processes there are.
    """
    return num_groups / parts * num_objects.clamp(min=1)


# The choices of a recipe, by the names of the functions. A plugin may add its own.

GROUP_ATTENTIONS: dict[str, GroupAttention] = {
    "attend_within_groups": attend_within_groups,
    "attend_across_groups": attend_across_groups,
}
MATCHES: dict[str, Match] = {
    "match_groups": match_groups,
    "match_naively": match_naively,
}
DENOISINGS: dict[str, Denoise] = {
    "denoise_all_groups": denoise_all_groups,
    "denoise_primary_group": denoise_primary_group,
}


def groups_are_separate(group_attention: str) -> bool:
    """Return whether groups do not attend to each other, given the name of their attention.

    Then each of them detects the same alone and together with others.
    """
    return GROUP_ATTENTIONS[group_attention] is attend_within_groups
