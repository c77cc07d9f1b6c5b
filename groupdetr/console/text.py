"""Text that is data, such as names of classes and files, made safe to print and to put on a page.

A name may hold anything: sequences that control a terminal, characters that reverse the direction
of the text around them, or characters that the encoding of the output lacks. None of these reaches
the output, and nothing of a name is lost: such characters are escaped as in Python.
"""

from __future__ import annotations

import html
import re
import shlex
import sys
import unicodedata

# Characters of these categories are escaped: controls, format characters, halves of surrogate
# pairs, and separators of lines and paragraphs.
_ESCAPED_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
# Format characters that are part of ordinary words: the joiners of Persian, of Indian scripts and
# of emoji.
_JOINERS = frozenset("\u200c\u200d")
# Characters of our own messages, and what stands for them in an encoding that lacks them.
_SUBSTITUTES = str.maketrans({"█": "#", "░": ".", "…": "...", "–": "-", "−": "-", "×": "x"})
# Characters that have no meaning in a Windows shell.
_PLAIN_ON_WINDOWS = re.compile(r"[\w\\/:.=+-]+")
# Characters that may not be part of a file name on some system.
_NOT_IN_FILE_NAMES = re.compile(r'[<>:"/\\|?*]')
# Names that Windows reserves, with any ending.
_RESERVED_NAMES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_MAX_FILE_NAME = 200  # bytes; common file systems allow 255
_ENDING = re.compile(rb"\.[A-Za-z0-9]{1,8}\Z")  # of a file name, such as .mp4


def escape_controls(text: str, keep_lines: bool = False) -> str:
    """Return a text with all characters escaped that control a terminal or the order of text.

    With ``keep_lines``, line feeds and tabs are kept.

    >>> escape_controls("red\\x1b[31m")
    'red\\\\x1b[31m'
    """
    if text.isprintable():
        return text
    characters = []
    for character in text:
        if _is_control(character) and not (keep_lines and character in "\n\t"):
            character = character.encode("unicode_escape").decode("ascii")
        characters.append(character)
    return "".join(characters)


def _is_control(character: str) -> bool:
    if character in _JOINERS:
        return False
    return unicodedata.category(character) in _ESCAPED_CATEGORIES


def encodable(text: str, encoding: str) -> str:
    """Return a text whose characters all exist in an encoding, such as cp1252 on Windows.

    Characters that it lacks are escaped, and our own graphical characters are replaced.
    """
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        plain = text.translate(_SUBSTITUTES)
        return plain.encode(encoding, "backslashreplace").decode(encoding)
    return text


def escape_html(content: object) -> str:
    """Return the string of any object as text of an HTML page, or as a value of an attribute."""
    return html.escape(escape_controls(str(content), keep_lines=True))


def quote(argument: object) -> str:
    """Return an argument as it is typed in a shell, with quotes if it needs them."""
    text = str(argument)
    if sys.platform == "win32":
        return text if _PLAIN_ON_WINDOWS.fullmatch(text) else f'"{text}"'
    return shlex.quote(text)


def quantity(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun, such as "1 image", "2 images", or "3 boxes".

    ``plural`` is that of a noun whose plural does not end in -s alone.
    """
    return f"{number} {noun}" if number == 1 else f"{number} {plural or noun + 's'}"


def file_name(text: str) -> str:
    """Return a text as the name of one file, on every system. An ordinary name does not change.

    Characters that cannot be part of a name, such as separators of folders, are replaced by ``_``.
    A long name is cut before its ending, which tells images from videos.
    """
    name = _NOT_IN_FILE_NAMES.sub("_", escape_controls(text))
    encoded = name.encode()
    if len(encoded) > _MAX_FILE_NAME:
        ending = _ENDING.search(encoded)
        kept = ending[0] if ending else b""
        encoded = encoded[: _MAX_FILE_NAME - len(kept)]
        name = encoded.decode(errors="ignore") + kept.decode()
    name = name.rstrip(". ")
    return f"_{name}" if not name or _RESERVED_NAMES.fullmatch(name) else name
