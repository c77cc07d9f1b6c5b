"""Rendering of synthetic images: light, shadow, colour and pattern, none of which depends on class.

Colours are float32 from 0 to 255 until the image is finished. The canvas has a margin, so that no
shadow needs to be clipped.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from groupdetr.data.synthetic_shapes import SyntheticObject

Floats = NDArray[np.float32]


def _palette(colours: str) -> Floats:
    """Return colours [n,3] from hexadecimal numbers."""
    return np.frombuffer(bytes.fromhex(colours), dtype=np.uint8).reshape(-1, 3).astype(np.float32)


OBJECT_COLOURS = _palette(
    "e85d58 f4a84a f0cd5c 42a584 86be78 2e8aa8 62b0e2 "
    "3a5ca8 805eb8 ce5c96 f6f0e2 383e4e b2543a 9edacc"
)
BACKGROUND_COLOURS = _palette(
    "f0e8da d6e1ea d9e4d5 f2ded8 c7c1ba cbac94 e2ddf0 2e3952 1e464e 42324c 3c3f46 607486"
)
MIN_CONTRAST = 170  # of an object's colour with the background, summed over the channels


def render(
    side: int, objects: list[SyntheticObject], texture: float, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Return an image [side,side,3] uint8 of objects, from back to front, on a background."""
    margin = math.ceil(side / 12)
    canvas = _background(side + 2 * margin, texture, rng)
    colours: list[Floats] = []
    for item in objects:
        if not colours:
            colours = list(rng.permutation(OBJECT_COLOURS))
        _paint(canvas, item, margin, colours, texture, rng)
    canvas = canvas[:, margin:-margin, margin:-margin]
    if texture > 0:
        camera_noise = rng.standard_normal((side, side), dtype=np.float32)
        canvas += 6 * texture * camera_noise
    return np.ascontiguousarray(canvas.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


def _background(side: int, texture: float, rng: np.random.Generator) -> Floats:
    """Return a background [3,side,side]: a gradient between two colours, with clouds and strokes.

    Without texture it is the gradient alone.
    """
    indices = rng.integers(len(BACKGROUND_COLOURS), size=2)
    colour, other_colour = BACKGROUND_COLOURS[indices, :, None, None]
    angle = rng.uniform(0, math.tau)
    axis = np.linspace(-0.35, 0.35, side, dtype=np.float32)
    blend = 0.5 + axis[:, None] * math.sin(angle) + axis * math.cos(angle)
    if texture == 0:
        return colour + 0.12 * blend * (other_colour - colour)
    blend = np.clip(blend + 0.4 * texture * _clouds(side, 6, rng), 0, 1)
    relief = texture * (7 * _clouds(side, 14, rng) + _strokes(side, texture, rng))
    return colour + (0.12 + 0.3 * texture) * blend * (other_colour - colour) + relief


def _clouds(side: int, cells: int, rng: np.random.Generator) -> Floats:
    """Return smooth noise [side,side], interpolated from ``cells`` x ``cells`` normal values."""
    nodes = Image.fromarray(rng.standard_normal((cells, cells), dtype=np.float32))
    return np.asarray(nodes.resize((side, side), Image.Resampling.BICUBIC))


def _strokes(side: int, texture: float, rng: np.random.Generator) -> Floats:
    """Return random lines and arcs [side,side], with values around 0: clutter of no class.

    They are open curves, darker or lighter than the background.
    """
    # Drawn at twice the size and reduced, which makes the strokes smooth.
    layer = Image.new("L", (2 * side, 2 * side), 128)
    pen = ImageDraw.Draw(layer)
    for _ in range(rng.poisson(14 * texture)):
        x, y, length = rng.uniform((0, 0, 0.1 * side), (2 * side, 2 * side, 0.6 * side))
        tone = int(rng.choice((78, 100, 156, 178)))
        angle = rng.uniform(0, 360)
        width = int(rng.integers(2, 3 + side // 28))
        if rng.random() < 0.6:
            circle = (x - length, y - length, x + length, y + length)
            end_angle = angle + rng.uniform(40, 130)
            pen.arc(circle, angle, end_angle, tone, width)
        else:
            end = (x + length * math.cos(angle), y + length * math.sin(angle))
            pen.line((x, y, *end), tone, width)
    return np.asarray(layer.reduce(2), dtype=np.float32) - 128


def _paint(
    canvas: Floats,
    item: SyntheticObject,
    margin: int,
    colours: list[Floats],
    texture: float,
    rng: np.random.Generator,
) -> None:
    """Paint an object and its shadow onto ``canvas``, in place, lit from the top left.

    The colour is removed from ``colours``.
    """
    border = margin // 2  # room for the shadow and the blur around the object
    coverage = np.pad(item.coverage, border)
    side = len(coverage)
    top = item.top + margin - border
    left = item.left + margin - border
    blur = ImageFilter.GaussianBlur(margin / 5)
    blurred = np.asarray(Image.fromarray(coverage).filter(blur), dtype=np.float32) / 255

    # The shadow falls to the bottom right.
    offset = max(1, margin // 4)
    shadow_rows = slice(top + offset, top + offset + side)
    shadow_columns = slice(left + offset, left + offset + side)
    canvas[:, shadow_rows, shadow_columns] *= 1 - 0.42 * blurred

    # A diagonal difference of the blurred shape brightens the rim that faces the light and darkens
    # the opposite one.
    light = np.ones_like(blurred)
    light[1:-1, 1:-1] += 0.35 * (blurred[2:, 2:] - blurred[:-2, :-2])

    background = canvas[:, top : top + side, left : left + side]  # a view of the canvas
    base_colour = _take_colour(colours, background.mean((1, 2)))
    variation = rng.uniform(-10, 10, 3).astype(np.float32)
    colour = (base_colour + variation)[:, None, None]
    if rng.random() < texture:
        colour = _patterned(colour, side, margin, texture, rng)
    background += coverage / np.float32(255) * (light * colour - background)


def _take_colour(colours: list[Floats], background: Floats) -> Floats:
    """Remove and return the first colour [3] with enough contrast to the background [3].

    Without one, it is the colour with the largest contrast. The next object gets another colour.
    """
    contrasts = [float(np.abs(colour - background).sum()) for colour in colours]
    index = contrasts.index(max(contrasts))
    for i, contrast in enumerate(contrasts):
        if contrast > MIN_CONTRAST:
            index = i
            break
    return colours.pop(index)


def _patterned(
    colour: Floats, side: int, margin: int, texture: float, rng: np.random.Generator
) -> Floats:
    """Return [3,side,side]: stripes, checks or clouds in the colour and in a tint of it."""
    angle = rng.uniform(0, math.tau)
    period = margin * rng.uniform(0.6, 1.1)
    steps = np.arange(side, dtype=np.float32) * (math.tau / period)
    cos, sin = math.cos(angle), math.sin(angle)
    across = np.sin(steps[:, None] * sin + steps * cos)
    along = np.sin(steps[:, None] * cos - steps * sin)
    # All three patterns are made before one is chosen, so that each takes the same random numbers.
    patterns = (across, 2 * across * along, _clouds(side, 6, rng))
    wave = patterns[rng.integers(3)]
    tint = 255 if colour.mean() < 150 else 30
    strength = (0.12 + 0.13 * texture) * (1 + np.clip(2 * wave, -1, 1))
    return colour + strength * (tint - colour)
