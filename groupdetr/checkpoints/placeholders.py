"""Replaces the Python objects that a checkpoint has beside its tensors, without running any code.

Training scripts save what is at hand: paths, dates, configurations, logs. A pickle asks to import
the class of every such object and to call it. Here, a placeholder takes its place, which accepts
any arguments and does nothing with them. So the tensors beside it can be read.
"""

from __future__ import annotations

import pickletools
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

LEGACY_PICKLES = 5  # in a file of torch before 1.6; the fourth has the content
# Modules whose functions do something when they are called. A file of weights has no use for them.
HARMFUL_MODULES = frozenset(
    (
        *("asyncio", "bdb", "code", "codeop", "ctypes", "importlib", "io", "_io", "marshal"),
        *("mmap", "multiprocessing", "nt", "operator", "os", "pathlib2", "pdb", "pickle"),
        *("_pickle", "pip", "pkgutil", "platform", "posix", "pty", "pydoc", "runpy", "setuptools"),
        *("shelve", "shutil", "signal", "site", "socket", "subprocess", "_posixsubprocess"),
        *("sys", "sysconfig", "tempfile", "threading", "timeit", "trace", "urllib"),
        *("venv", "webbrowser", "zipimport"),
    )
)
HARMFUL_BUILTINS = frozenset(
    (
        *("__import__", "breakpoint", "compile", "delattr", "eval", "exec", "exit", "globals"),
        *("help", "input", "locals", "open", "print", "quit", "setattr", "vars"),
    )
)


class HarmfulNameError(Exception):
    """A pickle asks for an action, such as running a command. The message is the full name."""


class Ignored:
    """Stands for an object of another class. It accepts any arguments, state and items."""

    full_name = ""  # of the class that it stands for

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...

    def __setitem__(self, _: object, __: object) -> None: ...

    def append(self, _: object) -> None:
        """Accept an item, as a list does."""

    def extend(self, _: object) -> None:
        """Accept items, as a list does."""


class IgnoredList(list[Any]):
    """Stands for an object of a class that is derived from list."""

    def __init__(self, *_: object) -> None:
        super().__init__()

    def __setstate__(self, _: object) -> None: ...


class PlainList:
    """Stands for an object of a class that is derived from list: it becomes an ordinary one.

    Before version 2.14, torch puts items into no other lists.
    """

    def __new__(cls, *_: object) -> list[object]:  # type: ignore[misc]
        return []


class IgnoredDict:
    """Stands for an object of a class that is derived from dict: it becomes an ordinary one."""

    def __new__(cls, *_: object) -> OrderedDict[object, object]:  # type: ignore[misc]
        return OrderedDict()


# What may stand for a class, in the order in which it is tried.
REPLACEMENTS = (Ignored, IgnoredList, PlainList, IgnoredDict)


def is_harmful(full_name: str) -> bool:
    """Return whether a name in a pickle, such as ``os.system``, asks for an action."""
    module, _, name = full_name.rpartition(".")
    if module == "builtins":
        return name in HARMFUL_BUILTINS
    return module.partition(".")[0] in HARMFUL_MODULES


def placeholder(full_name: str, kind: type = Ignored) -> type:
    """Return a new class that stands for the class or function ``full_name``.

    ``kind`` is one of `REPLACEMENTS`.
    """
    return type(kind.__name__, (kind,), {"full_name": full_name})


def global_names(path: Path) -> set[str]:
    """Return the full names of all classes and functions that a file of torch names.

    `ValueError` if its pickles cannot be parsed.
    """
    names: set[str] = set()
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for entry in archive.namelist():
                if entry.rpartition("/")[2] == "data.pkl":
                    with archive.open(entry) as stream:
                        names |= _names_in_pickle(stream)  # type: ignore[arg-type]
        return names
    with path.open("rb") as file:
        for _ in range(LEGACY_PICKLES):
            names |= _names_in_pickle(file)
    return names


def _names_in_pickle(stream: BinaryIO) -> set[str]:
    """Return the names in the next pickle of a stream, which has a protocol before 4."""
    names = set()
    for instruction, argument, _ in pickletools.genops(stream):
        if instruction.name == "GLOBAL":
            names.add(python3_name(*str(argument).split(" ", 1)))
    return names


def python3_name(module: str, name: str) -> str:
    """Return the full name of what a pickle names. Pickles before protocol 3 have Python 2's."""
    if (module, name) in NAME_MAPPING:
        module, name = NAME_MAPPING[module, name]
    return f"{IMPORT_MAPPING.get(module, module)}.{name}"
