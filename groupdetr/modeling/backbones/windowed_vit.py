"""Plain Vision Transformers whose blocks attend within windows, and a few of them globally.

They are the backbones of LW-DETR (Chen et al. 2024, arXiv 2406.03459) and of RF-DETR (Robinson et
al. 2025, arXiv 2511.09554), whose network is DINOv2's (Oquab et al. 2023, arXiv 2304.07193). An
image is divided into a fixed number of windows, so the size of a window grows with the image. No
block needs a mask, padding or a shift. Several blocks return a feature map each, and all maps have
the same size.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from groupdetr.checkpoints.checkpoint import Checkpoint
from groupdetr.checkpoints.layout import Layout
from groupdetr.errors import UsageError
from groupdetr.modeling.attention.multihead import dot_product_attention, split_heads
from groupdetr.modeling.backbones.backbone import Backbone, LayerDecay
from groupdetr.modeling.backbones.pretrained import load_all_weights, read_backbone_file
from groupdetr.modeling.backbones.pretrained_layouts import CAE, DINOV2, OFFICIAL_DINOV2
from groupdetr.modeling.drop_path import DropPath
from groupdetr.modeling.gradient_checkpointing import run_layer
from groupdetr.modeling.linear import Linear
from groupdetr.modeling.mlp import FeedForward
from groupdetr.modeling.module_list import ModuleList
from groupdetr.ops.resize import resize_antialiased

EPS = 1e-6  # of the layer norms
INIT_STD = 0.02  # standard deviation of the initial weights
LW_DETR_LAYER_SCALE = 0.1  # initial value in LW-DETR
DINOV2_LAYER_SCALE = 1.0  # initial value in RF-DETR
# Texts in the names of parameters without weight decay, as in the code of each
LW_DETR_UNDECAYED = ("layer_scale", "position", "bias", "norm")
RF_DETR_UNDECAYED = ("embed.", "bias", "norm")


@dataclass(frozen=True)
class WindowedViTSizes:
    """The sizes of a Vision Transformer with windows."""

    width: int  # channels of a token
    depth: int  # the number of blocks
    num_heads: int
    patch: int  # side of a patch, in pixels
    windows: int  # the image has this many windows along each of its sides
    global_blocks: tuple[int, ...]  # the blocks without windows, counted from 0
    map_blocks: tuple[int, ...]  # the blocks that return a feature map, counted from 0
    # Side, in patches, of the square table of position embeddings. It is interpolated for images
    # with another number of patches.
    position_grid: int
    drop_path: float = 0.0  # rate of the last block; it rises linearly from 0

    @property
    def size_divisor(self) -> int:
        """Both sides of an image are multiples of it, in pixels: every window has whole patches."""
        return self.patch * self.windows


def lw_detr_vit(
    sizes: WindowedViTSizes, recompute: bool, pretrained: bool | str = False
) -> Backbone:
    """Return LW-DETR's Vision Transformer, whose keys have no bias and which has no final norm.

    ``recompute`` turns on gradient checkpointing. ``pretrained`` is the path of a file with the
    weights of CAE v2, or False for random weights. `UsageError` if it is True: no file is
    downloaded. `WeightsError` if a file does not fit.
    """
    embed = PatchEmbedding(sizes)
    blocks = _blocks(sizes, key_bias=False, layer_scale=LW_DETR_LAYER_SCALE)
    network = WindowedViT(embed, blocks, nn.Identity(), sizes, recompute)
    if pretrained:
        load_weights(network, _read("lw_detr_vit", pretrained, (CAE,)))
    # Block i of L has the factor decay^(L-i), and the embedding decay^(L+1).
    layer_decay = LayerDecay(_layers_with_decay(sizes), undecayed=LW_DETR_UNDECAYED)
    return _backbone(network, sizes, layer_decay)


def windowed_dinov2(
    sizes: WindowedViTSizes, recompute: bool, pretrained: bool | str = False
) -> Backbone:
    """Return RF-DETR's DINOv2: every window has a class token, and a norm is applied to all maps.

    ``recompute`` turns on gradient checkpointing. ``pretrained`` is the path of a file with the
    weights of DINOv2, or False for random weights. `UsageError` if it is True: no file is
    downloaded. `WeightsError` if a file does not fit.
    """
    embed = ClassTokenPatchEmbedding(sizes)
    blocks = _blocks(sizes, key_bias=True, layer_scale=DINOV2_LAYER_SCALE)
    norm = nn.LayerNorm(sizes.width, eps=EPS)
    network = WindowedViT(embed, blocks, norm, sizes, recompute)
    if pretrained:
        load_weights(network, _read("windowed_dinov2", pretrained, (DINOV2, OFFICIAL_DINOV2)))
    # RF-DETR's code counts one layer more than there are blocks up to the last map. Block i has the
    # factor decay^(L-i), where L is the number of the last map's block, counted from 1, plus one.
    layers = _layers_with_decay(sizes)
    num_layers = sizes.map_blocks[-1] + 2
    without_parameters: tuple[str, ...] = ()
    missing = [without_parameters] * max(0, 1 + num_layers - len(layers))
    layer_decay = LayerDecay((*layers, *missing), undecayed=RF_DETR_UNDECAYED)
    return _backbone(network, sizes, layer_decay)


def _read(name: str, pretrained: bool | str, layouts: tuple[Layout, ...]) -> Checkpoint:
    """Read the pretrained weights of the backbone called ``name`` from a file."""
    if isinstance(pretrained, str):
        return read_backbone_file(pretrained, layouts)
    titles = " or ".join(layout.title for layout in layouts)
    raise UsageError(
        f"the weights of {name} are not downloaded",
        remedy=f"pass a file with the weights of {titles}: --pretrained-backbone FILE",
    )


def load_weights(network: WindowedViT, file: Checkpoint) -> None:
    """Load the weights of an ordinary Vision Transformer, in which the windows do not matter.

    A table of positions of another size is interpolated as it is for an image of another size, and
    the kernel of patches of another size is resampled (FlexiViT, Beyer et al. 2023). rfdetr 1.11.2
    loads no weights where one of the two differs. Blocks after those of the network are left out,
    as in LW-DETR's code: its networks have 6 or 10 blocks, and one file is for both.
    `WeightsError` if other names or shapes differ.
    """
    embed = network.embed
    state = {}
    for name, tensor in file.state.items():
        block = re.match(r"blocks\.(\d+)\.", name)
        if block is None or int(block[1]) < len(network.blocks):
            state[name] = tensor
    position, kernel = state.get("embed.position"), state.get("embed.patch_conv.weight")
    if position is not None and _has_square_table(position):
        state["embed.position"] = resize_positions(position, embed.position_grid, embed.antialias)
    if kernel is not None and kernel.ndim == 4 and kernel.shape[-1] != embed.patch:
        # Imported here: only this needs timm, which takes longer to import than torch.
        from timm.layers import resample_patch_embed

        state["embed.patch_conv.weight"] = resample_patch_embed(kernel, [embed.patch, embed.patch])
    load_all_weights(network, replace(file, state=state))


def _has_square_table(position: Tensor) -> bool:
    """True for position embeddings [1,1+G*G,C]: those of a class token and a square of patches."""
    num_patches = position.shape[1] - 1 if position.ndim == 3 else 0
    return num_patches > 0 and math.isqrt(num_patches) ** 2 == num_patches


def resize_positions(position: Tensor, grid: int, antialias: bool) -> Tensor:
    """Interpolate a square table of positions: [1,1+G*G,C] -> [1,1+grid*grid,C].

    The first row, of the class token, stays as it is.
    """
    class_token, patches = position[:, :1], position[:, 1:]
    side = math.isqrt(patches.shape[1])
    if side == grid:
        return position
    table = patches.unflatten(1, (side, side)).permute(0, 3, 1, 2)
    table = F.interpolate(
        table.float(), size=(grid, grid), mode="bicubic", align_corners=False, antialias=antialias
    )
    resized = table.flatten(2).transpose(1, 2).to(position.dtype)
    return torch.cat([class_token, resized], dim=1)


def _layers_with_decay(sizes: WindowedViTSizes) -> tuple[tuple[str, ...], ...]:
    """Return the embedding and the blocks as layers of `LayerDecay`."""
    return (("embed",), *[(f"blocks.{i}",) for i in range(sizes.depth)])


def _backbone(network: WindowedViT, sizes: WindowedViTSizes, layer_decay: LayerDecay) -> Backbone:
    """Return the network as a backbone. Blocks after the last map are not trained.

    Published weights have such a block, which no map depends on.
    """
    unused = tuple(f"blocks.{i}" for i in range(sizes.map_blocks[-1] + 1, sizes.depth))
    channels = [sizes.width] * len(sizes.map_blocks)
    return Backbone(network, channels, unused, layer_decay)


def _blocks(sizes: WindowedViTSizes, key_bias: bool, layer_scale: float) -> list[WindowedViTBlock]:
    blocks = []
    for index in range(sizes.depth):
        is_global = index in sizes.global_blocks
        block = WindowedViTBlock(
            sizes.width,
            sizes.num_heads,
            key_bias,
            layer_scale,
            drop_path=sizes.drop_path * index / max(1, sizes.depth - 1),
            windows_at_once=sizes.windows**2 if is_global else 1,
        )
        blocks.append(block)
    return blocks


class WindowedViT(nn.Module):
    """Images [B,3,H,W] -> maps [B,C,H/patch,W/patch] of the blocks `WindowedViTSizes.map_blocks`.

    ``embed`` returns the tokens of all windows, and ``norm`` is applied to the tokens of every map.
    `ValueError` if a side of the images is not a multiple of `WindowedViTSizes.size_divisor`:
    padding would change the windows, and so the features.
    """

    def __init__(
        self,
        embed: PatchEmbedding,
        blocks: Sequence[WindowedViTBlock],
        norm: nn.Module,
        sizes: WindowedViTSizes,
        recompute: bool,
    ) -> None:
        super().__init__()
        self.embed = embed
        self.blocks: ModuleList[WindowedViTBlock] = ModuleList(blocks)
        self.norm = norm
        self.map_blocks = sizes.map_blocks
        self.size_divisor = sizes.size_divisor
        self.recompute = recompute
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=INIT_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        self.require_whole_windows(pixels.shape[2], pixels.shape[3])
        height = pixels.shape[2] // self.embed.patch
        width = pixels.shape[3] // self.embed.patch
        x = self.embed(pixels)
        recompute = self.recompute and self.training
        maps = []
        for index, block in enumerate(self.blocks):
            x = run_layer(block, x, recompute=recompute)
            if index in self.map_blocks:
                maps.append(self.embed.merge_windows(self.norm(x), height, width))
            if index == self.map_blocks[-1]:
                break  # no map depends on the blocks after the last one
        return maps

    def require_whole_windows(self, height: int, width: int) -> None:
        """Raise `ValueError` unless both sides of the images are divided into whole windows."""
        # The sizes are no numbers in a graph for images of any size. The message is made in case of
        # an error only: torch.compile would make a graph for every size that it names.
        for side in (height, width):
            if isinstance(side, int) and side % self.size_divisor != 0:
                raise ValueError(
                    f"images of {height} x {width} pixels do not fit this backbone: both sides "
                    f"must be a multiple of {self.size_divisor}. Resize the images, and do not pad "
                    "them"
                )


class PatchEmbedding(nn.Module):
    """Images [B,3,H,W] -> tokens [B*W,T,C] of W windows, each with T tokens.

    A token is the embedding of a patch plus that of its position. The table of positions also has a
    first row for a class token, as all published weights have it, but LW-DETR has no class token.
    """

    num_class_tokens = 0  # of every window
    antialias = False  # how the table of positions is interpolated

    def __init__(self, sizes: WindowedViTSizes) -> None:
        super().__init__()
        self.patch = sizes.patch
        self.windows = sizes.windows
        self.position_grid = sizes.position_grid
        self.patch_conv = nn.Conv2d(3, sizes.width, sizes.patch, stride=sizes.patch)
        self.position = nn.Parameter(torch.empty(1, sizes.position_grid**2 + 1, sizes.width))
        nn.init.trunc_normal_(self.position, std=INIT_STD)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch_conv(pixels)  # [B,C,h,w]
        x = x + self.positions(x.shape[2], x.shape[3]).to(x.dtype)
        return self.split_windows(x.permute(0, 2, 3, 1))

    def positions(self, height: int, width: int) -> Tensor:
        """Return the position embeddings of ``height`` by ``width`` patches: [1,C,h,w]."""
        grid = self.position_grid
        table = self.position[:, 1:].unflatten(1, (grid, grid)).permute(0, 3, 1, 2)
        # In a graph for images of any size, they are always interpolated. If the size is that of
        # the table, that changes nothing.
        if isinstance(height, int) and isinstance(width, int) and height == width == grid:
            return table
        half = table.dtype in (torch.bfloat16, torch.float16)
        table = table.float() if half else table
        if self.antialias and torch.compiler.is_compiling() and not torch.compiler.is_exporting():
            return resize_antialiased(table, height, width)
        return F.interpolate(
            table,
            size=(height, width),
            mode="bicubic",
            align_corners=False,
            antialias=self.antialias,
        )

    def split_windows(self, x: Tensor) -> Tensor:
        """Divide tokens [B,h,w,C] into windows: [B*W,T,C], where W is the square of windows."""
        rows_and_columns = (self.windows, -1)
        x = x.unflatten(2, rows_and_columns).unflatten(1, rows_and_columns)  # [B,n,h/n,n,w/n,C]
        return x.transpose(2, 3).flatten(3, 4).flatten(0, 2)

    def merge_windows(self, x: Tensor, height: int, width: int) -> Tensor:
        """Put windows [B*W,T,C] together to a map [B,C,h,w], without the class tokens."""
        n = self.windows
        x = x[:, self.num_class_tokens :]
        x = x.unflatten(1, (height // n, width // n)).unflatten(0, (-1, n, n))  # [B,n,n,h/n,w/n,C]
        return x.transpose(2, 3).flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


class ClassTokenPatchEmbedding(PatchEmbedding):
    """`PatchEmbedding` with a copy of the class token in front of the patches of every window.

    RF-DETR interpolates the table of positions with antialiasing, which DINOv2 itself does not.
    """

    num_class_tokens = 1
    antialias = True

    def __init__(self, sizes: WindowedViTSizes) -> None:
        super().__init__(sizes)
        self.class_token = nn.Parameter(torch.empty(1, 1, sizes.width))
        nn.init.trunc_normal_(self.class_token, std=INIT_STD)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = super().forward(pixels)  # [B*W,T,C]
        class_token = (self.class_token + self.position[:, :1]).to(patches.dtype)
        return torch.cat([class_token.expand(patches.shape[0], -1, -1), patches], dim=1)


class WindowedViTBlock(nn.Module):
    """Self-attention and a feed-forward network, with a norm before and a layer scale after each.

    [B*W,T,C] -> [B*W,T,C]. The tokens of ``windows_at_once`` windows attend to each other: those of
    one window, or those of all windows of an image.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        key_bias: bool,
        layer_scale: float,
        drop_path: float,
        windows_at_once: int,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.attention = ViTSelfAttention(width, num_heads, key_bias)
        self.layer_scale1 = nn.Parameter(torch.full((width,), layer_scale))
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.feed_forward = FeedForward(width, 4 * width, dropout=0.0, activation=nn.GELU())
        self.layer_scale2 = nn.Parameter(torch.full((width,), layer_scale))
        self.drop_path = DropPath(drop_path)
        self.windows_at_once = windows_at_once

    def forward(self, x: Tensor) -> Tensor:
        # The order of the tokens does not matter in attention, so the windows of an image are put
        # one after the other.
        together = self.norm1(x).unflatten(0, (-1, self.windows_at_once)).flatten(1, 2)
        attended = self.attention(together).reshape(x.shape)
        x = x + self.drop_path(attended * self.layer_scale1)
        return x + self.drop_path(self.feed_forward(self.norm2(x)) * self.layer_scale2)


class ViTSelfAttention(nn.Module):
    """Self-attention of tokens, [B,T,C] -> [B,T,C]. ``key_bias``: whether the keys have a bias."""

    def __init__(self, width: int, num_heads: int, key_bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query_proj = Linear(width, width)
        self.key_proj = Linear(width, width, bias=key_bias)
        self.value_proj = Linear(width, width)
        self.output_proj = Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query = split_heads(self.query_proj(x), self.num_heads)
        key = split_heads(self.key_proj(x), self.num_heads)
        value = split_heads(self.value_proj(x), self.num_heads)
        return self.output_proj(dot_product_attention(query, key, value))
