"""Progress of a training: a live bar on a terminal or in a notebook, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from groupdetr.console.output import create_console
from groupdetr.engine.accelerator import is_main_process
from groupdetr.engine.callbacks import Callback, EvaluationEnd, StepEnd, TrainerInterface
from groupdetr.visualize.display import NotebookText, in_notebook

# Seconds between the first two lines where the output is neither terminal nor notebook. Later ones
# are further apart, by this fraction of the time that has passed: a day has about 450 lines.
PLAIN_EVERY = 10.0
PLAIN_FRACTION = 0.02
NOTEBOOK_EVERY = 0.5  # seconds between two changes of the text in a notebook
# Seconds between two changes of the text on a terminal. A text has the loss, and reading that waits
# for a GPU. The bar itself moves with every step.
TERMINAL_EVERY = 0.5
BAR_WIDTH = 30  # characters of the bar in a notebook

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
        if not is_main_process():
            return
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


class ProgressCallback(Callback):
    """Shows steps, loss, rate and remaining time, and one table row for each evaluation."""

    def __init__(self, console: Console | None = None, label: str = "train") -> None:
        self.console = console or create_console()
        self.notebook = NotebookText() if in_notebook() else None
        self.label = label
        self.last_step: tuple[StepEnd, float] | None = None  # the last step, and when it ended
        self.progress = 0.0  # fraction of the training that is done
        self.printed_header = False
        self.start_time: float | None = None  # when the first step ended
        self.start_step = 0  # the step that ended then
        self.start_progress = 0.0  # the progress at that time
        self.last_print_time = 0.0
        # The time and the number of images after the first batch of an evaluation.
        self.evaluation_start: tuple[float, int] | None = None
        self.evaluated = 0  # images of the evaluation that are done
        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[text]}", markup=False),
            console=self.console,
            transient=True,
        )
        self.task = self.bar.add_task(label, total=1.0, text="")

    def on_train_start(self, trainer: TrainerInterface) -> None:
        if self.console.is_terminal:
            self.bar.start()

    def on_train_end(self, trainer: TrainerInterface) -> None:
        if self.console.is_terminal:
            self.bar.stop()
        if self.notebook is not None and self.last_step is not None:
            self._update_notebook(self.notebook, self._step_text(*self.last_step))

    def on_step_end(self, trainer: TrainerInterface, event: StepEnd) -> None:
        now = time.monotonic()
        if self.start_time is None:
            self.start_time = now
            self.start_step = event.step
            self.start_progress = event.progress
        self.last_step = (event, now)
        self.progress = min(event.progress, 1.0)
        if self.console.is_terminal:
            self.bar.update(self.task, completed=event.progress)
        if self._is_due(now):
            self._show(self._step_text(event, now), now)

    def _step_text(self, event: StepEnd, now: float) -> str:
        """Return what is shown of a step that ended at the time ``now``."""
        total = f"/{event.total}" if event.total else ""
        text = f"step {event.step}{total}  loss {event.loss:.3f}  lr {event.lr:.1e}"
        if self.start_time is not None and event.progress > self.start_progress:
            elapsed = now - self.start_time
            steps_per_second = (event.step - self.start_step) / elapsed
            remaining = elapsed / (event.progress - self.start_progress) * (1 - event.progress)
            text += f"  {steps_per_second:.2f} steps/s  {format_duration(elapsed)} passed"
            text += f"  {format_duration(remaining)} left"
        return text

    def on_evaluation_progress(self, trainer: TrainerInterface, done: int, total: int) -> None:
        now = time.monotonic()
        if self.evaluation_start is None or done <= self.evaluated:  # the first batch
            self.evaluation_start = (now, done)
        self.evaluated = done
        start_time, start = self.evaluation_start
        text = f"evaluating {done}/{total} images"
        if done > start:
            text += f"  {format_times(now - start_time, (done - start) / (total - start))}"
        if self._is_due(now):
            self._show(text, now)

    def _is_due(self, now: float) -> bool:
        """True if enough time has passed since a text was shown last."""
        if self.console.is_terminal:
            every = TERMINAL_EVERY
        elif self.notebook is not None:
            every = NOTEBOOK_EVERY
        else:
            passed = 0.0 if self.start_time is None else now - self.start_time
            every = seconds_between_lines(passed)
        return now - self.last_print_time > every

    def _show(self, text: str, now: float) -> None:
        """Show a text."""
        if self.console.is_terminal:
            self.bar.update(self.task, text=text)
        elif self.notebook is not None:
            self._update_notebook(self.notebook, text)
        else:
            self.console.print(f"{self.label}  {text}", soft_wrap=True)
        self.last_print_time = now

    def _update_notebook(self, notebook: NotebookText, text: str) -> None:
        notebook.update(f"{self.label}  {text_bar(self.progress)}  {text}")

    def on_evaluation_end(self, trainer: TrainerInterface, event: EvaluationEnd) -> None:
        shown = {name: event.metrics[name] for name in trainer.task.metrics}
        if not self.printed_header:
            titles = "".join(f"{name:>10}" for name in shown)
            indent = " " * len(self.label)
            self.console.print(f"{indent} {'epoch':>8}{'time':>9}{titles}", soft_wrap=True)
            self.printed_header = True
        metrics = "".join(f"{format_percent(value):>10}" for value in shown.values())
        mark = "  best" if event.is_best else ""
        row = f"{self.label} {event.epoch:8.1f}{format_duration(event.seconds):>9}{metrics}{mark}"
        self.console.print(row, soft_wrap=True)


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
