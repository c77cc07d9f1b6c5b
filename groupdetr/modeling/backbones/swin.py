"""Swin Transformer (Liu et al., ICCV 2021, arXiv 2103.14030): windows that shift from block to block."""

from __future__ import annotations

from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock
from torch import Tensor, nn
from torch.nn import functional as F

from groupdetr.modeling.backbones.backbone import Backbone, pad_to_multiple
from groupdetr.modeling.backbones.pretrained import create
from groupdetr.modeling.backbones.pretrained_layouts import OFFICIAL_SWIN, TIMM_SWIN

PATCH = 4
OPTIONS = {
    "num_classes": 0,
    "drop_path_rate": 0.2,
    "strict_img_size": False,  # masks follow the size of the image
    "always_partition": True,  # windows are never smaller, and shift in the last stage, too
}


def swin_large(pretrained: bool | str, recompute: bool) -> Backbone:
    """Swin-L with windows of 12, as DINO has it: stages 1 to 3, of strides 8, 16 and 32; nothing is frozen.

    ``pretrained``: True for ImageNet-22k weights (384 pixels) through the hub, or the path of a local file with them,
    of the authors or of timm. ``recompute``: gradient checkpointing.
    """
    name = "swin_large_patch4_window12_384.ms_in22k"
    return swin(create(name, pretrained, (OFFICIAL_SWIN, TIMM_SWIN), **OPTIONS), recompute)


def swin(network: nn.Module, recompute: bool) -> Backbone:
    """A Swin Transformer of timm, built with ``OPTIONS``, as a backbone."""
    assert isinstance(network, SwinTransformer)
    channels = [network.embed_dim << stage for stage in range(1, network.num_layers)]
    return Backbone(Swin(network, channels, recompute), channels)


class Swin(nn.Module):
    """Images [B,3,H,W] of any size -> the maps of all stages but the first, each with a norm of its own."""

    def __init__(self, network: SwinTransformer, channels: list[int], recompute: bool) -> None:
        super().__init__()
        self.patch_embed, self.layers = network.patch_embed, network.layers
        self.norms = nn.ModuleDict(
            {str(stage): nn.LayerNorm(width) for stage, width in enumerate(channels, 1)}
        )
        network.set_grad_checkpointing(recompute)  # block by block
        for block in self.modules():
            if isinstance(block, SwinTransformerBlock):
                block.__class__ = Block

    def forward(self, pixels: Tensor) -> list[Tensor]:
        first, *others = self.layers
        x = first(self.patch_embed(pad_to_multiple(pixels, PATCH)))  # [B,h,w,C]
        maps = []
        for stage, norm in zip(others, self.norms.values()):
            x = stage(x)
            maps.append(norm(x).permute(0, 3, 1, 2))
        return maps


class Block(SwinTransformerBlock):
    """timm's block, padded to whole windows before they shift, as the authors do; timm shifts first. It matters to all
    images whose sides are no multiples of window times stride."""

    def _attn(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        down, right = (-side % window for side, window in zip((height, width), self.window_size))
        return super()._attn(F.pad(x, (0, 0, 0, right, 0, down)))[:, :height, :width]
