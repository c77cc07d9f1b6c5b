"""Where images and changing texts are shown: in a notebook, or on the screen."""

from __future__ import annotations

import os
import sys
from typing import Any

from PIL import Image
from rich.console import Console

from groupdetr.errors import UsageError

NOTEBOOK_EVERY = 0.5  # seconds between two changes of a text in a notebook


def in_notebook() -> bool:
    """Return True if this process is the kernel of a notebook, such as Jupyter's or Colab's."""
    return Console().is_jupyter


def display_in_notebook(value: object) -> None:
    """Show a value below the cell of a notebook, as if it were the last line of the cell."""
    # Every notebook has IPython; other programs do not need it.
    from IPython.display import display

    display(value)


def open_image(image: Image.Image) -> None:
    """Show an image in the image viewer of the system.

    `UsageError` if the machine has no screen or no image viewer.
    """
    # Imported here, because it imports IPython, which takes a moment, wherever that is installed.
    from PIL import ImageShow

    if not _has_screen():
        _raise_cannot_show("this machine has no screen")
    if not ImageShow.show(image):
        _raise_cannot_show("this machine has no program that shows images")


def _has_screen() -> bool:
    """Return False for a server without a display. Windows and macOS always have one."""
    if sys.platform in ("win32", "darwin"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _raise_cannot_show(what: str) -> None:
    raise UsageError(
        f"the image cannot be shown: {what}", remedy='write it to a file: result.save("image.jpg")'
    )


class NotebookText:
    """A text below the cell of a notebook that can be replaced by another one.

    A saved notebook has only the last text.
    """

    def __init__(self) -> None:
        self._handle: Any = None

    def update(self, text: str) -> None:
        """Show a text in place of the former one."""
        from IPython.display import display

        if self._handle is None:
            self._handle = display({"text/plain": text}, raw=True, display_id=True)
        else:
            self._handle.update({"text/plain": text}, raw=True)
