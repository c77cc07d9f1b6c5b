"""How a synthetic picture looks: light, shadow, colour and pattern, none of which gives a class away.

Colours are float32, 0 to 255, until the end. The canvas has a margin, so that no shadow needs clipping.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from groupdetr.data.synthetic_shapes import Piece

Array = npt.NDArray[Any]


def _palette(colours: str) -> Array:
    return np.frombuffer(bytes.fromhex(colours), dtype=np.uint8).reshape(-1, 3).astype(np.float32)


INKS = _palette(
    "e85d58 f4a84a f0cd5c 42a584 86be78 2e8aa8 62b0e2 3a5ca8 805eb8 ce5c96 f6f0e2 383e4e b2543a 9edacc"
)
PAPERS = _palette(
    "f0e8da d6e1ea d9e4d5 f2ded8 c7c1ba cbac94 e2ddf0 2e3952 1e464e 42324c 3c3f46 607486"
)
CONTRAST = 170  # summed over the channels, of an ink with what is behind it


def picture(side: int, pieces: list[Piece], texture: float, rng: np.random.Generator) -> Array:
    """Pieces, from back to front, on a background: [side,side,3] uint8."""
    margin = math.ceil(side / 12)
    canvas = _background(side + 2 * margin, texture, rng)
    inks: list[Array] = []
    for piece in pieces:
        inks = inks or list(rng.permutation(INKS))
        _paint(canvas, piece, margin, inks, texture, rng)
    canvas = canvas[:, margin:-margin, margin:-margin]
    if texture > 0:
        canvas += (
            6 * texture * rng.standard_normal((side, side), dtype=np.float32)
        )  # the grain of a camera
    return np.ascontiguousarray(canvas.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


def _background(side: int, texture: float, rng: np.random.Generator) -> Array:
    """One paper fading, in clouds, towards another; pen strokes on top: [3,side,side]."""
    paper, other = PAPERS[rng.integers(len(PAPERS), size=2), :, None, None]
    angle = rng.uniform(0, math.tau)
    axis = np.linspace(-0.35, 0.35, side, dtype=np.float32)
    blend = 0.5 + axis[:, None] * math.sin(angle) + axis * math.cos(angle)
    if texture == 0:
        return paper + 0.12 * blend * (other - paper)
    blend = np.clip(blend + 0.4 * texture * _clouds(side, 6, rng), 0, 1)
    relief = texture * (7 * _clouds(side, 14, rng) + _strokes(side, texture, rng))
    return paper + (0.12 + 0.3 * texture) * blend * (other - paper) + relief


def _clouds(side: int, cells: int, rng: np.random.Generator) -> Array:
    """Smooth noise of unit variance at its ``cells`` x ``cells`` nodes: [side,side]."""
    nodes = Image.fromarray(rng.standard_normal((cells, cells), dtype=np.float32))
    return np.asarray(nodes.resize((side, side), Image.Resampling.BICUBIC))


def _strokes(side: int, texture: float, rng: np.random.Generator) -> Array:
    """Open lines and arcs, darker or lighter than the paper: clutter that is no class. [side,side], around 0."""
    layer = Image.new("L", (2 * side, 2 * side), 128)
    pen = ImageDraw.Draw(layer)
    for _ in range(rng.poisson(14 * texture)):
        x, y, reach = rng.uniform((0, 0, 0.1 * side), (2 * side, 2 * side, 0.6 * side))
        tone, angle = int(rng.choice((78, 100, 156, 178))), rng.uniform(0, 360)
        width = int(rng.integers(2, 3 + side // 28))
        if rng.random() < 0.6:
            pen.arc(
                (x - reach, y - reach, x + reach, y + reach),
                angle,
                angle + rng.uniform(40, 130),
                tone,
                width,
            )
        else:
            pen.line((x, y, x + reach * math.cos(angle), y + reach * math.sin(angle)), tone, width)
    return np.asarray(layer.reduce(2), dtype=np.float32) - 128


def _paint(
    canvas: Array,
    piece: Piece,
    margin: int,
    inks: list[Array],
    texture: float,
    rng: np.random.Generator,
) -> None:
    """A shadow, then the body lit from the top left, onto ``canvas`` in place, in an ink taken from ``inks``."""
    padded = np.pad(piece.coverage, margin // 2)
    soft = (
        np.asarray(
            Image.fromarray(padded).filter(ImageFilter.GaussianBlur(margin / 5)), dtype=np.float32
        )
        / 255
    )
    top, left, side = (
        piece.top + margin - margin // 2,
        piece.left + margin - margin // 2,
        len(padded),
    )
    fall = max(1, margin // 4)
    canvas[:, top + fall : top + fall + side, left + fall : left + fall + side] *= 1 - 0.42 * soft
    behind = canvas[:, top : top + side, left : left + side]
    light = np.ones_like(soft)
    light[1:-1, 1:-1] += 0.35 * (
        soft[2:, 2:] - soft[:-2, :-2]
    )  # more on the rim that faces the light
    ink = (_take(inks, behind.mean((1, 2))) + rng.uniform(-10, 10, 3).astype(np.float32))[
        :, None, None
    ]
    body = light * (_patterned(ink, side, margin, texture, rng) if rng.random() < texture else ink)
    behind += padded / np.float32(255) * (body - behind)


def _take(inks: list[Array], behind: Array) -> Array:
    """Takes the first ink [3] that stands out from the colour behind it [3]: the next object gets another."""
    contrasts = [float(np.abs(ink - behind).sum()) for ink in inks]
    best = contrasts.index(max(contrasts))
    return inks.pop(next((i for i, contrast in enumerate(contrasts) if contrast > CONTRAST), best))


def _patterned(
    ink: Array, side: int, margin: int, texture: float, rng: np.random.Generator
) -> Array:
    """The ink striped, checked or marbled with a tint of itself: [3,side,side]."""
    angle, period = rng.uniform(0, math.tau), margin * rng.uniform(0.6, 1.1)
    steps = np.arange(side, dtype=np.float32) * (math.tau / period)
    across = np.sin(steps[:, None] * math.sin(angle) + steps * math.cos(angle))
    along = np.sin(steps[:, None] * math.cos(angle) - steps * math.sin(angle))
    wave = (across, 2 * across * along, _clouds(side, 6, rng))[rng.integers(3)]
    tint = 255 if ink.mean() < 150 else 30
    return ink + (0.12 + 0.13 * texture) * (1 + np.clip(2 * wave, -1, 1)) * (tint - ink)
