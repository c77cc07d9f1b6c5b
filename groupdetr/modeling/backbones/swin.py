"""Swin Transformer (Liu et al., ICCV 2021, arXiv 2103.14030): attention in shifted windows."""

from __future__ import annotations

import torch
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock, SwinTransformerStage
from torch import Tensor, nn
from torch.nn import functional as F

from groupdetr.modeling.backbones.backbone import (
    Backbone,
    cut_map,
    next_multiple,
    pad_to_multiple,
)
from groupdetr.modeling.backbones.pretrained_layouts import OFFICIAL_SWIN, TIMM_SWIN
from groupdetr.modeling.backbones.timm_weights import create_network

PATCH = 4  # pixels

# Options of timm's network.
OPTIONS = {
    "num_classes": 0,
    "drop_path_rate": 0.2,
    "strict_img_size": False,  # attention masks are computed for the size of every batch
    # Windows never become smaller than their nominal size, and they shift in the last stage, too.
    "always_partition": True,
}


def swin_large(pretrained: bool | str, recompute: bool) -> Backbone:
    """Return Swin-L with windows of 12, as in DINO: stages 1 to 3, of strides 8, 16 and 32.

    Nothing is frozen. ``pretrained`` is True for ImageNet-22k weights (384 pixels) from the hub, or
    the path of a local file with them, the authors' or timm's. ``recompute`` turns on gradient
    checkpointing.
    """
    name = "swin_large_patch4_window12_384.ms_in22k"
    network = create_network(name, pretrained, (OFFICIAL_SWIN, TIMM_SWIN), **OPTIONS)
    return swin(network, recompute)


def swin(network: nn.Module, recompute: bool) -> Backbone:
    """Return a backbone made of timm's Swin Transformer, which was built with ``OPTIONS``."""
    assert isinstance(network, SwinTransformer)
    channels = [network.embed_dim << stage for stage in range(1, network.num_layers)]
    return Backbone(Swin(network, channels, recompute), channels)


class Swin(nn.Module):
    """Images [B,3,H,W] of any size -> the maps of all stages but the first.

    Each map has a layer norm of its own. The modules of ``network`` become modules of this one.
    ``channels`` are those of the maps.
    """

    def __init__(self, network: SwinTransformer, channels: list[int], recompute: bool) -> None:
        super().__init__()
        self.patch_embed = network.patch_embed
        self.layers = network.layers
        self.norms = nn.ModuleDict(
            {str(stage): nn.LayerNorm(width) for stage, width in enumerate(channels, 1)}
        )
        network.set_grad_checkpointing(recompute)  # block by block
        for stage in self.layers:
            assert isinstance(stage, SwinTransformerStage)
            for index, block in enumerate(stage.blocks):
                assert isinstance(block, SwinTransformerBlock)
                stage.blocks[index] = PaddedBlock(block)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        first_stage, *later_stages = self.layers
        patches = self.patch_embed(pad_to_multiple(pixels, PATCH))  # [B,h,w,C]
        x = first_stage(patches)
        maps = []
        for stage, norm in zip(later_stages, self.norms.values()):
            # The stage begins with merging patches of 2 x 2.
            x = stage(pad_map(x, 2, 2))
            maps.append(norm(x).permute(0, 3, 1, 2))
        return maps


class PaddedBlock(SwinTransformerBlock):
    """timm's block, but maps are padded to whole windows before the windows shift.

    The authors pad first, and timm shifts first. The results differ for all images whose sides are
    not multiples of window times stride. The submodules are those of ``block``.
    """

    def __init__(self, block: SwinTransformerBlock) -> None:
        # On the meta device, the submodules that are replaced below draw no random numbers.
        with torch.device("meta"):
            super().__init__(
                dim=block.dim,
                input_resolution=block.input_resolution,
                num_heads=block.attn.num_heads,
                window_size=block.window_size,
                shift_size=block.target_shift_size,
                always_partition=block.always_partition,
                dynamic_mask=block.dynamic_mask,
                mlp_ratio=block.mlp_ratio,
            )
        self.norm1 = block.norm1
        self.attn = block.attn
        self.drop_path1 = block.drop_path1
        self.norm2 = block.norm2
        self.mlp = block.mlp
        self.drop_path2 = block.drop_path2
        self.attn_mask = block.attn_mask  # None if it is computed for every batch

    def _attn(self, x: Tensor) -> Tensor:
        """Windowed attention, [B,H,W,C] -> [B,H,W,C]."""
        height, width = x.shape[1:3]
        window_height, window_width = self.window_size
        padded = pad_map(x, window_height, window_width)
        return cut_map(super()._attn(padded), height, width, axis=1)


def pad_map(x: Tensor, multiple_of_height: int, multiple_of_width: int) -> Tensor:
    """Pad with zeros on the right and at the bottom, [B,H,W,C] -> [B,H',W',C].

    The sides become multiples of these numbers.
    """
    height, width = x.shape[1:3]
    right = next_multiple(width, multiple_of_width) - width
    bottom = next_multiple(height, multiple_of_height) - height
    return F.pad(x, (0, 0, 0, right, 0, bottom))
