"""Position embeddings that attention adds to tokens or object queries.

They are fixed, scaled or gated by the content, or computed from the reference box.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from groupdetr.modeling.mlp import MLP
from groupdetr.ops.position import sine_embedding
from groupdetr.structures.memory import Memory


class PositionEmbedding(nn.Module, ABC):
    """The position embedding [...,C] of tokens [B,S,C] or queries [B,K,N,C].

    Tokens are embedded with ``position`` and ``content`` alone. Queries also have a ``reference``
    [B|1,K,N,R] and the ``memory`` that they attend to.
    """

    uses_content: ClassVar[bool] = True  # False if the result does not depend on ``content``

    @abstractmethod
    def forward(
        self,
        position: Tensor | None,
        content: Tensor,
        reference: Tensor | None = None,
        memory: Memory | None = None,
    ) -> Tensor: ...


class FixedPositionEmbedding(PositionEmbedding):
    """The given position embedding, the same in all layers (DETR, Conditional DETR)."""

    uses_content = False

    def forward(
        self,
        position: Tensor | None,
        content: Tensor,
        reference: Tensor | None = None,
        memory: Memory | None = None,
    ) -> Tensor:
        assert position is not None
        return position


class ContentScaledPositionEmbedding(PositionEmbedding):
    """A position embedding multiplied by an MLP of the content.

    DAB-DETR's encoder and DAB-Deformable-DETR's decoder use it.
    """

    def __init__(self, position_embedding: PositionEmbedding, scale: MLP) -> None:
        super().__init__()
        self.position_embedding = position_embedding
        self.scale = scale

    def forward(
        self,
        position: Tensor | None,
        content: Tensor,
        reference: Tensor | None = None,
        memory: Memory | None = None,
    ) -> Tensor:
        embedding = self.position_embedding(position, content, reference, memory)
        return embedding * self.scale(content)


class GatedPositionEmbedding(PositionEmbedding):
    """Position embedding multiplied by a sigmoid gate computed from the content.

    (PETRv2, Liu et al. 2023, Sec. 3.2)
    """

    def __init__(self, gate: MLP) -> None:
        super().__init__()
        self.gate = gate

    def forward(
        self,
        position: Tensor | None,
        content: Tensor,
        reference: Tensor | None = None,
        memory: Memory | None = None,
    ) -> Tensor:
        assert position is not None
        return position * self.gate(content).sigmoid()


class BoxPositionEmbedding(PositionEmbedding):
    """MLP(sine(box)) of the reference box, computed again whenever that changes.

    (DAB-DETR, Liu et al. 2022, Eq. 4)
    """

    uses_content = False

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mlp = MLP(2 * channels, channels, channels, num_layers=2)

    def forward(
        self,
        position: Tensor | None,
        content: Tensor,
        reference: Tensor | None = None,
        memory: Memory | None = None,
    ) -> Tensor:
        assert reference is not None
        sine = sine_embedding(reference, content.shape[-1] // 2)
        return self.mlp(sine.to(reference.dtype))


class PaddedBoxPositionEmbedding(BoxPositionEmbedding):
    """`BoxPositionEmbedding` of the box in coordinates of the padded image.

    This is how the official code of DAB-Deformable-DETR and DINO computes it, with the valid ratio
    of the finest level.
    """

    def forward(
        self,
        position: Tensor | None,
        content: Tensor,
        reference: Tensor | None = None,
        memory: Memory | None = None,
    ) -> Tensor:
        assert reference is not None
        assert memory is not None
        finest_ratio = memory.valid_ratios[:, 0].repeat(1, 2)  # [B,4]
        return super().forward(position, content, reference * finest_ratio[:, None, None], memory)
