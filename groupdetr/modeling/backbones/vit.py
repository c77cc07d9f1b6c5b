"""Plain Vision Transformers for detection (ViTDet, arXiv 2203.16527): windows, and a few blocks that see everything.

ViT-Huge is that of Group DETR v2 (arXiv 2211.03594), with the numbers of PaddleDetection's code.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from functools import partial

from timm.layers import resample_patch_embed
from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from groupdetr.checkpoints.reading import Checkpoint
from groupdetr.modeling.backbones.backbone import Backbone, Layers, pad_to_multiple
from groupdetr.modeling.backbones.pretrained import create, fill, read
from groupdetr.modeling.backbones.pretrained_layouts import MAE
from groupdetr.modeling.backbones.simple_pyramid import SimplePyramid

PATCH = 16
STEM_FACTOR = 0.01  # of the rate, for the patch embedding


@dataclass(frozen=True)
class Sizes:
    """Of a plain Vision Transformer and its pyramid."""

    width: int
    depth: int
    num_heads: int
    window: int  # side, in patches
    global_blocks: tuple[int, ...]  # those without windows, counted from 0
    image: int = 1024  # the side in pixels that their tables of relative positions are made for; others interpolate
    drop_path: float = 0.1  # of the last block; rises from 0
    channels: int = 256  # of the pyramid


HUGE = Sizes(width=1280, depth=32, num_heads=16, window=14, global_blocks=(7, 15, 23, 31))


def vit_huge(pretrained: bool | str, recompute: bool, sizes: Sizes = HUGE) -> Backbone:
    """ViT-H/16 with a simple pyramid: maps of strides 8, 16, 32 and 64, all of ``sizes.channels``.

    ``pretrained``: True for MAE's weights through the hub, or the path of a local file with them, timm's or the
    authors'; their patches of 14 pixels are resampled to 16. ``recompute``: gradient checkpointing. Other ``sizes``
    make a smaller one of its kind.
    """
    vit = ViT(sizes, recompute)
    if pretrained is True:
        start(vit, _from_the_hub("vit_huge_patch14_224.mae"))
    elif pretrained:
        start(vit, read(pretrained, (MAE,)))
    network = nn.Sequential(
        OrderedDict(vit=vit, pyramid=SimplePyramid(sizes.width, sizes.channels))
    )
    layers = Layers(
        tuple(f"vit.blocks.{i}" for i in range(sizes.depth)), "vit.patch_embed", STEM_FACTOR
    )
    return Backbone(network, [sizes.channels] * 4, layers=layers)


class ViT(nn.Module):
    """Images [B,3,H,W] of any size -> a map [B,width,H/16,W/16], rounded up. There is no last norm."""

    def __init__(self, sizes: Sizes, recompute: bool) -> None:
        super().__init__()
        network = VisionTransformerSAM(
            img_size=sizes.image,
            patch_size=PATCH,
            embed_dim=sizes.width,
            depth=sizes.depth,
            num_heads=sizes.num_heads,
            window_size=sizes.window,
            global_attn_indexes=sizes.global_blocks,
            drop_path_rate=sizes.drop_path,
            use_rel_pos=True,
            use_abs_pos=False,
            neck_chans=0,
            num_classes=0,
            norm_layer=partial(nn.LayerNorm, eps=1e-5),  # type: ignore[arg-type]  # PaddleDetection's; 1e-6 in ViTDet
        )
        self.patch_embed, self.blocks, self.recompute = (
            network.patch_embed,
            network.blocks,
            recompute,
        )

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch_embed(pad_to_multiple(pixels, PATCH))  # [B,h,w,width]
        for block in self.blocks:
            x = self.run(block, x)
        return x.permute(0, 3, 1, 2)

    def run(self, block: nn.Module, x: Tensor) -> Tensor:
        return (
            checkpoint(block, x, use_reentrant=False)
            if self.recompute and self.training
            else block(x)
        )


def start(vit: ViT, file: Checkpoint) -> None:
    """With a classifier's weights: patches resampled; relative positions, which it has not, stay at zero."""
    own = {name: value for name, value in vit.state_dict().items() if "rel_pos" in name}
    patches = resample_patch_embed(file.state["patch_embed.proj.weight"], [PATCH, PATCH])
    fill(vit, replace(file, state={**own, **file.state, "patch_embed.proj.weight": patches}))


def _from_the_hub(name: str) -> Checkpoint:
    network = create(name, True, (), num_classes=0)
    return MAE.convert(Checkpoint(network.state_dict(), {}, f"timm/{name} on the Hugging Face hub"))
