"""Names of classes and files are data: whatever they hold, they are printed and nothing is lost."""

from __future__ import annotations

import shlex
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groupdetr.console.text import (
    encodable,
    escape_controls,
    escape_html,
    file_name,
    quantity,
    quote,
)
from groupdetr.errors import UsageError

NAMES = [
    "screw [/M8]",
    "汽车 é ñ",
    "می‌خواهم",  # with a joiner
    "👩‍🚒",  # with a joiner
    "Bildschirmfoto 10.30.12",  # with the narrow space of macOS
]


def test_ordinary_names_of_any_language_do_not_change() -> None:
    for name in NAMES:
        assert escape_controls(name) == name


def test_what_controls_a_terminal_is_escaped() -> None:
    for name, printed in (
        ("a\x1b[2Jb", r"a\x1b[2Jb"),  # clears the screen
        ("a\x9b2Jb", r"a\x9b2Jb"),  # the same, as one character
        ("a\nerror: b", r"a\nerror: b"),
        ("gpj.\u202eexe", r"gpj.\u202eexe"),  # reverses the order of what follows
        ("a\u2028b", r"a\u2028b"),
        ("\udcff.jpg", r"\udcff.jpg"),  # a name of Linux that is not UTF-8
    ):
        assert escape_controls(name) == printed


@given(st.text())
def test_no_control_character_remains_of_any_text(text: str) -> None:
    escaped = escape_controls(text)
    for character in escaped:
        category = unicodedata.category(character)
        is_joiner = character in "\u200c\u200d"
        assert is_joiner or category not in ("Cc", "Cf", "Cs", "Zl", "Zp")


@given(st.text(), st.sampled_from(["cp1252", "ascii", "cp932", "utf-8"]))
def test_every_text_can_be_written_in_every_encoding(text: str, encoding: str) -> None:
    encodable(escape_controls(text), encoding).encode(encoding)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\\█░…–−×")))
def test_what_an_encoding_lacks_is_escaped_and_not_lost(text: str) -> None:
    assert encodable(text, "ascii").encode("ascii").decode("unicode_escape") == text


def test_bars_have_the_same_length_in_an_encoding_without_blocks() -> None:
    assert encodable("█" * 30 + "░", "cp1252") == "#" * 30 + "."


def test_names_are_text_in_a_page() -> None:
    name = '<script>alert("1")</script>\u202e\x1b&'
    escaped = escape_html(name)
    assert not set('<>"\u202e\x1b') & set(escaped)
    assert escape_html("screw [/M8]") == "screw [/M8]"


@pytest.mark.skipif(sys.platform == "win32", reason="the shell of POSIX")
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
def test_a_quoted_argument_is_read_by_a_shell_as_it_is(text: str) -> None:
    assert shlex.split(quote(text)) == [text]


def test_an_ordinary_path_is_not_quoted() -> None:
    assert quote("runs/mine-6g") == "runs/mine-6g"


def test_a_name_in_the_data_becomes_the_name_of_one_file() -> None:
    for name, file in (
        ("scene-0061", "scene-0061"),
        ("../../etc/passwd", ".._.._etc_passwd"),
        ("..\\a", ".._a"),
        ("a:b", "a_b"),
        ("..", "_"),
        ("con", "_con"),
        ("LPT1.jpg", "_LPT1.jpg"),
        ("v1. ", "v1"),
        ("", "_"),
    ):
        assert file_name(name) == file


@given(st.text())
def test_a_file_name_leads_nowhere_and_is_not_too_long(text: str) -> None:
    name = file_name(text)
    assert name not in ("", ".", "..")
    assert not set('/\\:*?"<>|\0') & set(name)
    assert len(name.encode()) <= 201


def test_a_quantity_has_its_plural() -> None:
    assert quantity(1, "image") == "1 image"
    assert quantity(0, "image") == "0 images"
    assert quantity(2, "box", "boxes") == "2 boxes"


def test_the_message_of_an_error_controls_no_terminal_either() -> None:
    """Python prints the message of an exception as it is."""
    assert "\x1b" not in str(UsageError("there is no such run", "a\x1b[2Jb"))
