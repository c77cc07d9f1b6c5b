"""Progress of long work: a live bar on a terminal, lines elsewhere."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from groupdetr.console.output import create_console

# Seconds between the first two lines where the output is not a terminal. Later ones are further
# apart, by this fraction of the time that has passed: a day has about 450 lines.
PLAIN_EVERY = 10.0
PLAIN_FRACTION = 0.02
BAR_WIDTH = 30  # characters of a bar of characters

Item = TypeVar("Item")


def with_progress(items: Iterable[Item], label: str, total: int | None = None) -> Iterator[Item]:
    """Yield the items. On a terminal, a bar shows how many of them are done.

    ``total`` is their number; None if ``items`` has a length.
    """
    console = create_console()
    if not console.is_terminal:
        # Even with a bar that is disabled, versions of rich before 14.3 would print an empty line.
        yield from items
        return
    columns = [
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        *time_columns(),
    ]
    with Progress(*columns, console=console, transient=True) as progress:
        yield from progress.track(items, total=total, description=label)


def time_columns() -> list[ProgressColumn]:
    """Return the columns of a bar with the time that has passed, and the time that is left."""
    return [
        TimeElapsedColumn(),
        TextColumn("passed,", markup=False),
        TimeRemainingColumn(),
        TextColumn("left", markup=False),
    ]


class CountProgress:
    """Shows how many of a number of images are done, and the time that has passed and is left.

    It is a bar on a terminal, and lines elsewhere, which are further apart the longer it takes. It
    is called with the number of images that are done, and of all; None for a number that nobody
    knows. ``noun`` is what is counted, in the plural.
    """

    def __init__(self, label: str, noun: str = "images") -> None:
        self.label = label
        self.noun = noun
        self.console = create_console()
        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            *time_columns(),
            console=self.console,
            transient=True,
        )
        self.task = self.bar.add_task(label, total=0, text="")
        self.start_time = self.last_print_time = time.monotonic()

    def __enter__(self) -> CountProgress:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.console.is_terminal:
            self.bar.stop()

    def __call__(self, done: int, total: int | None) -> None:
        if os.environ.get("RANK", "0") != "0":
            return  # A launcher such as torchrun has started several processes, and one shows it.
        if total is not None:
            # A file may have more frames than its header tells.
            total = max(done, total)
        text = f"{done} {self.noun}" if total is None else f"{done}/{total} {self.noun}"
        now = time.monotonic()
        if self.console.is_terminal:
            self.bar.start()  # This does nothing if it has been started.
            self.bar.update(self.task, completed=done, total=total, text=text)
        elif now - self.last_print_time > seconds_between_lines(now - self.start_time):
            passed = now - self.start_time
            times = f"{format_duration(passed)} passed"
            if total:
                times = format_times(passed, done / total)
            self.console.print(f"{self.label}  {text}  {times}")
            self.last_print_time = now


def seconds_between_lines(passed: float) -> float:
    """Return the seconds between two lines, given those since the first one."""
    return max(PLAIN_EVERY, PLAIN_FRACTION * passed)


def format_times(passed: float, fraction: float) -> str:
    """Return the time that has passed, and that is left if ``fraction`` of the work is done."""
    left = passed / fraction * (1 - fraction) if fraction > 0 else math.nan
    return f"{format_duration(passed)} passed  {format_duration(left)} left"


def text_bar(fraction: float) -> str:
    """Return a bar of characters, of which ``fraction`` is filled, and the percentage."""
    filled = round(BAR_WIDTH * fraction)
    return f"{'█' * filled}{'░' * (BAR_WIDTH - filled)} {100 * fraction:3.0f}%"


def format_percent(fraction: float) -> str:
    """Format a metric in [0,1] as papers print AP: 0.4321 is 43.2, nan is a dash."""
    return "-" if math.isnan(fraction) else f"{100 * fraction:.1f}"


def format_duration(seconds: float) -> str:
    """Format seconds: 45s, 2m05s, 3h07m."""
    if not math.isfinite(seconds):
        return "?"
    minutes, remaining_seconds = divmod(round(seconds), 60)
    hours, remaining_minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{remaining_minutes:02d}m"
    if minutes:
        return f"{minutes}m{remaining_seconds:02d}s"
    return f"{remaining_seconds}s"
