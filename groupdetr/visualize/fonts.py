"""Fonts of labels. Pillow's own font has ASCII letters only; others come from the system."""

from __future__ import annotations

import unicodedata
from functools import cache, lru_cache

from PIL import ImageFont

from groupdetr.console.text import encodable, escape_controls

# Fonts with many scripts, as they are called on Linux, macOS and Windows.
_SYSTEM_FONTS = (
    "NotoSans-Regular.ttf",
    "DejaVuSans.ttf",
    "NotoSansCJK-Regular.ttc",
    "Arial Unicode.ttf",
    "PingFang.ttc",
    "Hiragino Sans GB.ttc",
    "AppleSDGothicNeo.ttc",
    "segoeui.ttf",
    "msyh.ttc",
    "YuGothM.ttc",
    "malgun.ttf",
)
_NO_CHARACTER = "\uffff"  # fonts draw it like every character that they lack


@lru_cache(maxsize=4096)
def font_and_text(text: str, size: int) -> tuple[ImageFont.FreeTypeFont, str]:
    """Return a font of ``size`` pixels, and the text to draw with it, as one line.

    If no font of the system has all characters, accents are removed and other characters are
    escaped, so that no part of a name is drawn as an empty box.
    """
    line = escape_controls(" ".join(text.split()))
    default = default_font(size)
    if line.isascii():
        return default, line
    for name in _SYSTEM_FONTS:
        font = _system_font(name, size)
        if font is not None and _has_all(font, line):
            return font, line
    decomposed = unicodedata.normalize("NFKD", line)
    without_accents = "".join(c for c in decomposed if not unicodedata.combining(c))
    return default, encodable(without_accents, "ascii")


@lru_cache(maxsize=4096)
def text_width(font: ImageFont.FreeTypeFont, text: str) -> float:
    """Return the width of a line of text in pixels, which takes as long to find as to draw it."""
    return font.getlength(text, "L")


@cache
def default_font(size: int) -> ImageFont.FreeTypeFont:
    """Return Pillow's own font."""
    font = ImageFont.load_default(size=size)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font


@cache
def _system_font(name: str, size: int) -> ImageFont.FreeTypeFont | None:
    """Return a font of the system, None if it is not installed."""
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None


def _has_all(font: ImageFont.FreeTypeFont, text: str) -> bool:
    """True if a font has every character of a text."""
    missing = bytes(font.getmask(_NO_CHARACTER))
    return all(c.isspace() or bytes(font.getmask(c)) != missing for c in set(text))
