"""Labels have a font for their letters, or the letters are escaped. None is an empty box."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from PIL import ImageFont

from groupdetr.visualize import fonts
from groupdetr.visualize.fonts import default_font, font_and_text


@pytest.fixture
def without_system_fonts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    font_and_text.cache_clear()
    monkeypatch.setattr(fonts, "_SYSTEM_FONTS", ())
    yield
    font_and_text.cache_clear()


@pytest.mark.usefixtures("without_system_fonts")
@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("nucleus 0.93", "nucleus 0.93"),
        ("café 0.93", "cafe 0.93"),
        ("汽车 0.93", r"\u6c7d\u8f66 0.93"),
        ("two\nlines", "two lines"),
        ("a\x1b[31m", r"a\x1b[31m"),
    ],
)
def test_without_another_font_the_text_has_only_letters_of_the_default_font(
    caption: str, expected: str
) -> None:
    assert font_and_text(caption, 12) == (default_font(12), expected)


def test_a_font_of_the_system_is_used_if_it_has_all_letters() -> None:
    try:
        ImageFont.truetype("DejaVuSans.ttf", 12)
    except OSError:
        pytest.skip("DejaVu Sans is not installed")
    font, text = font_and_text("Жук é 0.93", 12)
    assert text == "Жук é 0.93"
    assert font is not default_font(12)
    assert font_and_text("Жук \U00012345", 12)[0] is default_font(12), "no font has cuneiform"
