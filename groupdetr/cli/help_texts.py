"""What `groupdetr COMMAND --help` says of each option: its docstring, as sentences for a terminal.

tyro prints the options. It keeps the line breaks of the docstrings, which then fall into the middle
of the lines of a terminal, and it does not break the lines of the description at all.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
import textwrap
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import IO, Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from groupdetr.settings import Settings

_NONE = re.compile(r"(^|[.:;] |\) )None: ")
_COLOUR = re.compile("\x1b\\[[0-9;]*m")
_EMPTY_BOX = re.compile("│ +│")
_METAVARS: Mapping[Any, str] = {int: "INT", float: "FLOAT", str: "STR", Path: "PATH"}


def descriptions(options: type) -> dict[str, str]:
    """Return the docstring of every field of a dataclass, without line breaks."""
    from docstring_parser import parse_from_object

    texts = {}
    for base in reversed(options.__mro__[:-1]):
        for field in parse_from_object(base).params:
            texts[field.arg_name] = " ".join((field.description or "").split())
    return texts


def set_help_texts(options: type) -> None:
    """Give every field of a dataclass of options, and of those in it, its text for `--help`.

    The fields of the options are optional in Python, and None is their default. In a terminal, the
    default is what happens without the option. The settings of a training may also be set to None.
    """
    import tyro

    hints = get_type_hints(options, include_extras=True)
    texts = descriptions(options)
    is_settings = options is Settings
    for field in dataclasses.fields(options):
        kind, *annotations = unpack(hints[field.name])
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            set_help_texts(kind)
            continue
        text = texts.get(field.name, "")
        hint = metavar = None
        is_repeated = tyro.conf.UseAppendAction in annotations
        if not is_settings and (field.default is None or field.default == ()):
            text = _NONE.sub(_default, text)
        if not is_settings and field.default is None:
            hint = ""
            if not any(getattr(item, "metavar", None) for item in annotations):
                metavar = _metavar(kind)
        if isinstance(field.default, bool) or (_may_be_empty(field, kind) and not is_repeated):
            hint = ""
        annotations.append(tyro.conf.arg(help=text, metavar=metavar, help_behavior_hint=hint))
        # The class that declares the field, from which tyro reads its type.
        owner = next(base for base in options.__mro__ if field.name in _annotations_of(base))
        owner.__annotations__[field.name] = Annotated[(kind, *annotations)]


def _annotations_of(kind: type) -> dict[str, Any]:
    """Return the annotations of a class itself, without those of its bases."""
    annotations: dict[str, Any] = vars(kind).get("__annotations__", {})
    return annotations


def _may_be_empty(field: dataclasses.Field[Any], kind: Any) -> bool:
    """Return whether an option takes any number of values, and has none by default."""
    return get_origin(kind) is tuple and field.default in ((), dataclasses.MISSING)


def unpack(hint: Any) -> tuple[Any, ...]:
    """Return a type without Annotated, and the annotations."""
    return get_args(hint) if get_origin(hint) is Annotated else (hint,)


def _default(match: re.Match[str]) -> str:
    """Return "default: " for "None: ", with a capital at the beginning of a sentence."""
    before = match.group(1)
    return before + ("default: " if before in ("; ", ": ") else "Default: ")


def _metavar(kind: Any) -> str | None:
    """Return what stands for the value of an option that may be None; None: what tyro chooses."""
    if get_origin(kind) not in (Union, UnionType):
        return None
    kinds = [item for item in get_args(kind) if item is not NoneType]
    names = []
    for item in kinds:
        if get_origin(item) is Literal:
            names.append("{" + ",".join(map(str, get_args(item))) + "}")
        elif item in _METAVARS:
            names.append(_METAVARS[item])
        else:
            return None
    return "|".join(names)


class HelpStream:
    """A stream that breaks the lines of a help that are longer than the terminal, between words.

    Lines of boxes fit already. Those without any text are left out: tyro writes one where the text
    of an option without a default ends at the end of a line.
    """

    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream
        self._left_out = False

    def write(self, text: str) -> int:
        if self._left_out and text == "\n":
            self._left_out = False
            return 0
        self._left_out = _EMPTY_BOX.fullmatch(_COLOUR.sub("", text)) is not None
        if self._left_out:
            return 0
        return self.stream.write("\n".join(map(_broken, text.split("\n"))))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _broken(line: str) -> str:
    """Return a line without colours in lines that fit into the terminal."""
    columns = shutil.get_terminal_size().columns
    if len(line) <= columns or _COLOUR.search(line) or "│" in line:
        return line
    return textwrap.fill(line, columns, break_long_words=False, break_on_hyphens=False)
