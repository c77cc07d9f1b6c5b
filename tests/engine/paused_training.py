"""A program that trains, and waits after it has logged a step until it may go on.

Its arguments are the step, the folder of two empty files, and then those of `groupdetr`. It creates
the file "paused" and waits for the file "go".
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

from groupdetr.cli.main import main
from groupdetr.engine.run_folder import RunFolder
from groupdetr.structures.json_object import JsonObject


def pause_after(step: int, folder: Path) -> None:
    """Let the training wait after this step."""
    append = RunFolder.append

    def append_and_wait(self: RunFolder, record: JsonObject) -> None:
        append(self, record)
        if record["step"] == step and "losses" in record:
            (folder / "paused").touch()
            while not (folder / "go").exists():
                time.sleep(0.01)

    RunFolder.append = append_and_wait  # type: ignore[method-assign]


if __name__ == "__main__":
    # Programs that a shell starts in the background ignore Ctrl-C, and so do all that they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    pause_after(int(sys.argv[1]), Path(sys.argv[2]))
    raise SystemExit(main(sys.argv[3:]))
