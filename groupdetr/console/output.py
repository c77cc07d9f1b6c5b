"""Printing: the console that all commands print with, and its tables.

Every text is printed as it is. Rich's markup, such as ``[bold]``, and its names of emoji, such as
``:car:``, have no meaning here, because class names and paths may look like them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import IO, Any

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from groupdetr.console.text import encodable, escape_controls

# The sequences by which programs colour their output.
_COLOUR = re.compile(r"(\x1b\[[0-9;]*m)")


class PlainConsole(Console):
    """A console that prints every text as it is, without line breaks of its own.

    Characters that control a terminal, and those that the encoding of the output lacks, are
    escaped.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(
            highlight=False,
            soft_wrap=True,
            markup=False,
            emoji=False,
            **{"force_jupyter": False, **options},
        )

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a text that is printed as it is. Rich calls it for every string."""
        return super().render_str(self.printable(text), **{**options, "markup": False})

    def printable(self, text: str) -> str:
        """Return a text as this console prints it."""
        return encodable(escape_controls(text, keep_lines=True), self.encoding)

    def print_table(self, rows: Sequence[Mapping[str, str]]) -> None:
        """Print a table, with the keys of the rows as its header. No cell is cut."""
        if not rows:
            return
        table = [list(rows[0]), *(list(row.values()) for row in rows)]
        # A line break in a name must not begin a new row.
        cells = [[self.printable(escape_controls(cell)) for cell in row] for row in table]
        # Some characters, such as Chinese ones, are two columns wide.
        widths = [max(map(cell_len, column)) for column in zip(*cells)]
        for number, row in enumerate(cells):
            padded = [cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths)]
            self.print(Text("  ".join(padded).rstrip(), style="" if number else "bold"))


def create_console() -> PlainConsole:
    """Return the console of a command, which prints to stdout.

    In a notebook it prints to stdout, too, because rich would make an output of its own of every
    line. A command that a notebook runs with ``!`` has a terminal, but the notebook would save
    every change of a progress bar. So its output is treated like a file.
    """
    # Jupyter sets this variable for the kernel of a notebook, which passes it on to its commands.
    in_cell = "JPY_PARENT_PID" in os.environ
    return PlainConsole(force_terminal=False if in_cell else None)


class EscapingStream:
    """A stream that escapes what controls a terminal, except for colours, and passes on the rest.

    It is for the output of libraries that print the arguments of a command.
    """

    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        parts = _COLOUR.split(text)
        for index in range(0, len(parts), 2):  # those between the colours
            parts[index] = escape_controls(parts[index], keep_lines=True)
        return self.stream.write("".join(parts))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)
