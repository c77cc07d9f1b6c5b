"""Progress of a training on the console: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from groupdetr.engine.callbacks import Callback, EvaluationEnd, StepEnd

PLAIN_EVERY = 10.0  # seconds between two lines where the output is not a terminal


class ProgressCallback(Callback):
    """Shows steps, loss, rate and remaining time, and one table row for each evaluation."""

    def __init__(self, console: Console | None = None, label: str = "train") -> None:
        self.console = console or Console(highlight=False)
        self.label = label
        self.printed_header = False
        self.start_time: float | None = None  # when the first step ended
        self.start_step = 0  # the step that ended then
        self.start_progress = 0.0  # the progress at that time
        self.last_print_time = 0.0
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[text]}"),
            console=self.console,
            transient=True,
        )
        self.task = self.bar.add_task(label, total=1.0, text="")

    def on_train_start(self) -> None:
        if self.console.is_terminal:
            self.bar.start()

    def on_train_end(self) -> None:
        self.bar.stop()

    def on_step_end(self, event: StepEnd) -> None:
        now = time.monotonic()
        if self.start_time is None:
            self.start_time = now
            self.start_step = event.step
            self.start_progress = event.progress
        total = f"/{event.total}" if event.total else ""
        text = f"step {event.step}{total}  loss {event.loss:.3f}  lr {event.lr:.1e}"
        if event.progress > self.start_progress:
            elapsed = now - self.start_time
            steps_per_second = (event.step - self.start_step) / elapsed
            remaining = elapsed / (event.progress - self.start_progress) * (1 - event.progress)
            text += f"  {steps_per_second:.2f} steps/s  {format_duration(remaining)} left"
        self._show(event.progress, text, now)

    def on_evaluation_progress(self, done: int, total: int) -> None:
        self._show(None, f"evaluating {done}/{total} images", time.monotonic())

    def _show(self, progress: float | None, text: str, now: float) -> None:
        if self.console.is_terminal:
            self.bar.update(self.task, completed=progress, text=text)
        elif now - self.last_print_time > PLAIN_EVERY:
            self.console.print(f"{self.label}  {text}", soft_wrap=True)
            self.last_print_time = now

    def on_evaluation_end(self, event: EvaluationEnd) -> None:
        if not self.printed_header:
            titles = "".join(f"{name:>10}" for name in event.stats)
            indent = " " * len(self.label)
            self.console.print(f"{indent} {'epoch':>8}{'time':>9}{titles}", soft_wrap=True)
            self.printed_header = True
        metrics = "".join(f"{format_percent(value):>10}" for value in event.stats.values())
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
