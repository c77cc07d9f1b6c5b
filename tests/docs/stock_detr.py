"""A plain DETR in forty lines of code: torch's transformer, as in DETR's demo notebook.

It has auxiliary outputs, which the notebook does not have, and nothing of this library.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class StockDETR(nn.Module):
    def __init__(self, num_classes: int, num_queries: int, channels: int = 64) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, channels, 4, stride=4),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 2, stride=2),
        )
        self.row_embed = nn.Parameter(torch.rand(50, channels // 2))
        self.column_embed = nn.Parameter(torch.rand(50, channels // 2))
        self.transformer = nn.Transformer(
            channels,
            nhead=4,
            num_encoder_layers=2,
            num_decoder_layers=3,
            dim_feedforward=2 * channels,
            batch_first=True,
        )
        self.queries = nn.Embedding(num_queries, channels)
        self.class_head = nn.Linear(channels, num_classes + 1)
        self.box_head = nn.Linear(channels, 4)

    def encode(self, images: Tensor) -> Tensor:
        features = self.backbone(images)
        height, width = features.shape[-2:]
        rows = self.row_embed[:height, None].expand(-1, width, -1)
        columns = self.column_embed[:width].expand(height, -1, -1)
        position = torch.cat([rows, columns], dim=-1).flatten(0, 1)
        return self.transformer.encoder(features.flatten(2).mT + position)

    def decode(self, queries: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        layers = []
        for layer in self.transformer.decoder.layers:
            queries = layer(queries, memory)
            layers.append(queries)
        hidden = torch.stack(layers)  # [L,B,N,C]
        return self.class_head(hidden), self.box_head(hidden).sigmoid()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        queries = self.queries.weight.expand(len(images), -1, -1)
        return self.decode(queries, self.encode(images))
