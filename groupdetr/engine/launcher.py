"""The launcher of a training in several processes: torchrun, or `accelerate launch`."""

from __future__ import annotations

import logging
import os

_logger = logging.getLogger("groupdetr")


class Launcher:
    """The process that has started this one, if it is a launcher.

    A launcher that is killed does not end the processes that it has started. Nobody would pass on
    signals to them any more, and those of other machines would go on, too.
    """

    def __init__(self) -> None:
        self.is_launched = "TORCHELASTIC_RUN_ID" in os.environ
        self.process = os.getppid()

    def has_ended(self) -> bool:
        """True if this process was started by a launcher that has ended. The first time is logged.

        It is always False on Windows, where a process does not get another parent.
        """
        if self.is_launched and os.getppid() != self.process:
            self.is_launched = False
            _logger.warning(
                "the launcher of this process (%d) has ended; the training stops after this step",
                self.process,
            )
            return True
        return False
