"""Prediction head of RF-DETR-Seg: class logits, a box, and the embedding of a mask."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from groupdetr.modeling.heads import RelativeBoxHead
from groupdetr.modeling.linear import Linear, linear
from groupdetr.structures.memory import Memory, PixelMemory
from groupdetr.structures.predictions import Predictions

EXPANSION = 4  # width of the hidden layer, in channels


class MaskEmbedding(nn.Module):
    """Contents of queries [...,C] -> mask embeddings [...,C+1], the last number is the bias.

    In the published code, a 1x1 convolution with weight W and bias c projects the mask features f
    of every pixel. The logit of a query with the projection q is (W f + c) q + b. The same logit is
    f (W^T q) + (c q + b). So here the queries are projected and the pixels are not, because there
    are fewer queries than pixels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.expand = Linear(channels, EXPANSION * channels)
        self.contract = Linear(EXPANSION * channels, channels)
        self.query_proj = Linear(channels, channels)
        # A convolution, so that its initial weights and its shape are those of the published code.
        self.pixel_proj = nn.Conv2d(channels, channels, kernel_size=1)
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.contract(F.gelu(self.expand(self.norm(x))))
        query = self.query_proj(x)
        assert self.pixel_proj.bias is not None
        # C rows for the embedding, and one for its bias
        weight = torch.cat([self.pixel_proj.weight.flatten(1).t(), self.pixel_proj.bias[None]])
        no_bias = self.bias.new_zeros(len(weight) - 1)
        return linear(query, weight, torch.cat([no_bias, self.bias]))


class BoxAndMaskHead(RelativeBoxHead):
    """`RelativeBoxHead` that also predicts a mask on the mask features of its layer."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__(channels, num_classes)
        self.mask_embed = MaskEmbedding(channels)

    def forward(self, x: Tensor, reference: Tensor, memory: Memory) -> Predictions:
        assert isinstance(memory, PixelMemory)
        boxes = super().forward(x, reference, memory)
        return Predictions(boxes.logits, boxes.boxes, memory.mask_features, self.mask_embed(x))
