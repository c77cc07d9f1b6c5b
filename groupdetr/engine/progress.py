"""Progress of a training: a live bar on a terminal or in a notebook, plain lines elsewhere."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from groupdetr.console.output import create_console
from groupdetr.console.progress import (
    format_duration,
    format_percent,
    format_times,
    seconds_between_lines,
    text_bar,
)
from groupdetr.engine.callbacks import Callback, EvaluationEnd, StepEnd, TrainerInterface
from groupdetr.visualize.display import NOTEBOOK_EVERY, NotebookText, in_notebook

# Seconds between two changes of the text on a terminal. A text has the loss, and reading that waits
# for a GPU. The bar itself moves with every step.
TERMINAL_EVERY = 0.5


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
