"""Plain Vision Transformer for detection (ViTDet, arXiv 2203.16527).

Most blocks attend within windows, and a few attend globally. ViT-Huge is that of Group DETR v2
(arXiv 2211.03594), with the hyperparameters of PaddleDetection's code.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace

from timm.layers import resample_patch_embed
from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import Tensor, nn

from groupdetr.checkpoints.checkpoint import Checkpoint
from groupdetr.modeling.backbones.backbone import Backbone, LayerDecay, pad_to_multiple
from groupdetr.modeling.backbones.pretrained import (
    load_all_weights,
    read_backbone_file,
)
from groupdetr.modeling.backbones.pretrained_layouts import MAE
from groupdetr.modeling.backbones.simple_pyramid import SimplePyramid
from groupdetr.modeling.backbones.timm_weights import create_network
from groupdetr.modeling.gradient_checkpointing import run_layer

PATCH = 16  # pixels
STEM_FACTOR = 0.01  # of the patch embedding's learning rate


@dataclass(frozen=True)
class ViTSizes:
    """The sizes of a plain Vision Transformer and its pyramid."""

    width: int
    depth: int
    num_heads: int
    window: int  # side of a window, in patches
    global_blocks: tuple[int, ...]  # indices of the blocks without windows
    # Side in pixels of the images that the tables of relative positions are made for. They are
    # interpolated for other images.
    image: int = 1024
    drop_path: float = 0.1  # rate of the last block; it rises linearly from 0
    channels: int = 256  # of the pyramid


HUGE = ViTSizes(width=1280, depth=32, num_heads=16, window=14, global_blocks=(7, 15, 23, 31))
# of `dino-vit-tiny`, for a CPU
SMALL = ViTSizes(width=96, depth=4, num_heads=3, window=4, global_blocks=(1, 3), image=256)


def vit_huge(pretrained: bool | str, recompute: bool, sizes: ViTSizes = HUGE) -> Backbone:
    """Return ViT-H/16 with a simple pyramid: maps of strides 8, 16, 32 and 64.

    ``pretrained`` is True for MAE's weights from the hub, or the path of a local file with them,
    timm's or the authors'. Their patches of 14 pixels are resampled to 16. ``recompute`` turns on
    gradient checkpointing. Other ``sizes`` give a smaller network of the same kind.
    """
    vit = ViT(sizes, recompute)
    if pretrained is True:
        load_mae(vit, _download_mae("vit_huge_patch14_224.mae"))
    elif pretrained:
        load_mae(vit, read_backbone_file(pretrained, (MAE,)))
    pyramid = SimplePyramid(sizes.width, sizes.channels)
    network = nn.Sequential(OrderedDict(vit=vit, pyramid=pyramid))
    blocks = tuple((f"vit.blocks.{i}",) for i in range(sizes.depth))
    layer_decay = LayerDecay(blocks, stem="vit.patch_embed", stem_factor=STEM_FACTOR)
    return Backbone(network, [sizes.channels] * 4, layer_decay=layer_decay)


class ViT(nn.Module):
    """Images [B,3,H,W] of any size -> a map [B,width,H/16,W/16], rounded up.

    There is no norm after the last block.
    """

    def __init__(self, sizes: ViTSizes, recompute: bool) -> None:
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
            norm_layer=nn.LayerNorm,  # with eps 1e-5, as in PaddleDetection; ViTDet has 1e-6
        )
        self.patch_embed = network.patch_embed
        self.blocks = network.blocks
        self.recompute = recompute

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch_embed(pad_to_multiple(pixels, PATCH))  # [B,h,w,width]
        recompute = self.recompute and self.training
        for block in self.blocks:
            x = run_layer(block, x, recompute=recompute)
        return x.permute(0, 3, 1, 2)


def load_mae(vit: ViT, file: Checkpoint) -> None:
    """Load the weights of a classifier that was trained by MAE.

    The kernel of the patch embedding is resampled. A classifier has no relative positions; they
    keep their initial zeros.
    """
    relative_positions = {
        name: value for name, value in vit.state_dict().items() if "rel_pos" in name
    }
    patches = resample_patch_embed(file.state["patch_embed.proj.weight"], [PATCH, PATCH])
    state = {**relative_positions, **file.state, "patch_embed.proj.weight": patches}
    load_all_weights(vit, replace(file, state=state))


def _download_mae(name: str) -> Checkpoint:
    network = create_network(name, True, (), num_classes=0)
    where = f"timm/{name} on the Hugging Face hub"
    return MAE.convert(Checkpoint(network.state_dict(), {}, where))
