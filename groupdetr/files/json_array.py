"""A JSON array that is written item by item, so that a long one is never in memory as a whole."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from groupdetr.files.writing import draft_of, explained


class JsonArrayFile:
    """Writes the same file as `json.dumps(items, indent=1)`, with a line break at its end.

    The items go to a draft beside the file. `close` puts the draft in the place of the file, and
    `discard` removes it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.draft = draft_of(path)
        self.count = 0
        with explained(path):
            self._file: TextIO = self.draft.open("w", encoding="utf-8", newline="\n")

    def append(self, item: object) -> None:
        """Write one more item."""
        self.append_text(json_item(item))

    def append_text(self, item: str) -> None:
        """Write one more item, which `json_item` has returned."""
        with explained(self.path):
            self._file.write(",\n" if self.count else "[\n")
            self._file.write(item)
        self.count += 1

    def close(self) -> None:
        """Write the end of the array, and replace the file."""
        with explained(self.path):
            self._file.write("\n]\n" if self.count else "[]\n")
            self._file.close()
            self.draft.replace(self.path)

    def discard(self) -> None:
        """Remove what was written."""
        with suppress(OSError):
            self._file.close()
            self.draft.unlink(missing_ok=True)


def json_item(item: object) -> str:
    """Return an item as it is in the file of an array, for `JsonArrayFile.append_text`."""
    text = json.dumps(item, indent=1, allow_nan=False, default=str)
    return " " + text.replace("\n", "\n ")  # JSON has no line breaks inside of strings
