"""What a person watching sees: a bar with rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

PLAIN_EVERY = 10.0  # seconds between lines where there is no terminal


class Reporter(Protocol):
    """Told by the trainer what happens, from entering to leaving."""

    def __enter__(self) -> Any: ...

    def __exit__(self, *exception: object) -> None: ...

    def step(self, step: int, total: int | None, share: float, loss: float, lr: float) -> None: ...

    def evaluating(self, done: int, total: int) -> None: ...

    def evaluated(
        self, epoch: float, seconds: float, stats: Mapping[str, float], better: bool
    ) -> None: ...


class Silent:
    """Says nothing: for processes other than the first."""

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *exception: object) -> None: ...

    def step(self, *args: Any) -> None: ...

    def evaluating(self, *args: Any) -> None: ...

    def evaluated(self, *args: Any) -> None: ...


class ConsoleReporter:
    """A live bar on a terminal; where output is kept in a file, a line every ten seconds."""

    def __init__(self, console: Console | None = None, label: str = "train") -> None:
        self.console = console or Console(highlight=False)
        self.label, self.header = label, False
        self.started, self.first, self.spoke = 0.0, (0, 0.0), 0.0
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
        )
        self.bar = Progress(
            *columns, TextColumn("{task.fields[text]}"), console=self.console, transient=True
        )
        self.task = self.bar.add_task(label, total=1.0, text="")

    def __enter__(self) -> ConsoleReporter:
        if self.console.is_terminal:
            self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()

    def step(self, step: int, total: int | None, share: float, loss: float, lr: float) -> None:
        now = time.monotonic()
        if not self.started:
            self.started, self.first = now, (step, share)
        of = f"/{total}" if total else ""
        text = f"step {step}{of}  loss {loss:.3f}  lr {lr:.1e}"
        if share > self.first[1]:
            passed = now - self.started
            left = passed / (share - self.first[1]) * (1 - share)
            text += f"  {(step - self.first[0]) / passed:.2f} steps/s  {duration(left)} left"
        self._say(share, text, now)

    def evaluating(self, done: int, total: int) -> None:
        self._say(None, f"evaluating {done}/{total} images", time.monotonic())

    def _say(self, share: float | None, text: str, now: float) -> None:
        if self.console.is_terminal:
            self.bar.update(self.task, completed=share, text=text)
        elif now - self.spoke > PLAIN_EVERY:
            self.console.print(f"{self.label}  {text}", soft_wrap=True)
            self.spoke = now

    def evaluated(
        self, epoch: float, seconds: float, stats: Mapping[str, float], better: bool
    ) -> None:
        names = list(stats)
        if not self.header:
            titles = "".join(f"{name:>10}" for name in names)
            self.console.print(
                f"{'':>{len(self.label)}} {'epoch':>8}{'time':>9}{titles}", soft_wrap=True
            )
            self.header = True
        figures = "".join(f"{percent(stats[name]):>10}" for name in names)
        mark = "  best" if better else ""
        self.console.print(
            f"{self.label} {epoch:8.1f}{duration(seconds):>9}{figures}{mark}", soft_wrap=True
        )


def percent(share: float) -> str:
    """AP as papers print it: 0.4321 is 43.2."""
    return "-" if math.isnan(share) else f"{100 * share:.1f}"


def duration(seconds: float) -> str:
    """Seconds as people read them."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
    )
