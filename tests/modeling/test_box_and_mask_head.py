"""The head of RF-DETR-Seg projects queries where the published one projects pixels."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from groupdetr.modeling.box_and_mask_head import MaskEmbedding
from groupdetr.structures.masks import MaskFeatures, MaskPredictions

C = 16


def test_masks_are_those_of_projected_pixels() -> None:
    torch.manual_seed(0)
    module = MaskEmbedding(C)
    nn.init.normal_(module.bias)
    x, pixels = torch.randn(2, 3, 5, C), torch.randn(2, C, 6, 7)
    features = MaskFeatures(pixels, torch.tensor([[24, 28]] * 2))
    masks = MaskPredictions(module(x), features).full()

    # The steps of the published code
    normed = F.layer_norm(x, (C,), module.norm.weight, module.norm.bias)
    hidden = F.gelu(F.linear(normed, module.expand.weight, module.expand.bias))
    block = x + F.linear(hidden, module.contract.weight, module.contract.bias)
    query = F.linear(block, module.query_proj.weight, module.query_proj.bias)
    projected = module.pixel_proj(pixels)
    expected = torch.einsum("bchw,bknc->bknhw", projected, query) + module.bias
    assert torch.allclose(masks, expected, atol=1e-5)
