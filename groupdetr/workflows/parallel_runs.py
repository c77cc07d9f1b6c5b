"""Several training runs in parallel, each in its own process.

Some runs start later, because their length depends on how long other runs take.
"""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from groupdetr.engine.progress import (
    NOTEBOOK_EVERY,
    PLAIN_EVERY,
    format_percent,
    format_times,
    text_bar,
)
from groupdetr.engine.run_folder import RunFolder
from groupdetr.errors import GroupDETRError
from groupdetr.registry import experiment, loaded_plugins
from groupdetr.settings import Settings
from groupdetr.tasks.registry import task_class
from groupdetr.visualize.display import NotebookText, in_notebook

# After this fraction of a training, the measured time per step is accurate enough.
MIN_TIMED_FRACTION = 0.25
POLL_SECONDS = 0.5  # between two checks of the processes
STOP_SECONDS = 60.0  # for the current step and a checkpoint, until a process is killed
LOG_LINES = 15  # of a training that failed, in the error message


@dataclass(frozen=True)
class TrainingRun:
    """One training, with its own process and folder."""

    model: str
    data: Path
    folder: Path
    groups: int
    settings: Settings
    steps: int  # of the whole training
    label: str = ""  # distinguishes the run from others if K does not

    @property
    def run(self) -> RunFolder:
        return RunFolder(self.folder)

    @property
    def log_file(self) -> Path:
        """The output of the process."""
        return self.folder / "train.log"

    @property
    def done(self) -> bool:
        """True if the run was evaluated after its last step."""
        return any(record["step"] >= self.steps for record in self.run.evaluations())

    def __str__(self) -> str:
        model = f"{self.model}, " if self.label else ""
        settings = self.settings
        return f"{model}K = {self.groups}, seed {settings.seed}, {settings.epochs:g} epochs"

    def last_step(self) -> int:
        """Return the last logged step; 0 if nothing was logged."""
        records = self.run.records()
        return int(records[-1]["step"]) if records else 0

    def seconds_per_step(self) -> float:
        """Return the mean time of a step; 0 if nothing was logged."""
        records = self.run.records()
        if not records:
            return 0.0
        return float(records[-1]["seconds"] / records[-1]["step"])

    def progress_text(self) -> str:
        """Return the progress in percent, the main metric of the last evaluation, and times.

        The times are those that the training has taken, and that it will probably still take.
        """
        step = self.last_step()
        parts = [f"{100 * step / self.steps:.0f} %"]
        evaluations = self.run.evaluations()
        if evaluations:
            metric = task_class(experiment(self.model).task).metrics[0]
            value = evaluations[-1][metric]
            parts.append(f"{metric} {format_percent(math.nan if value is None else value)}")
        if step:
            parts.append(format_times(step * self.seconds_per_step(), min(1.0, step / self.steps)))
        return ", ".join(parts)

    def start_process(self) -> subprocess.Popen[bytes]:
        """Start the training, or resume it if it was stopped. Its output goes to the log.

        It is in a session of its own, so that Ctrl-C only reaches this program, which then stops
        all trainings.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.run.config.is_file():
            arguments = ["--resume", str(self.folder)]
        else:
            arguments = [str(self.data), "--model", self.model, "--groups", str(self.groups)]
            arguments += ["--out", str(self.folder), "--no-check", *self.settings.as_flags()]
        for plugin in loaded_plugins():
            arguments += ["--plugin", plugin]
        command = [sys.executable, "-m", "groupdetr", "train", *arguments]
        with self.log_file.open("ab") as log:
            return subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )


@dataclass(frozen=True)
class Comparison:
    """Two runs with the same seed: one with one group, and one with K groups."""

    base: TrainingRun
    grouped: TrainingRun

    def equal_time_run(self) -> TrainingRun | None:
        """Return the baseline with the number of epochs that take as long as the run with groups.

        It is None as long as the time of either run is not known.
        """
        folder = self.base.folder.with_name(f"{self.base.folder.name}-longer")
        base_steps, base_epochs = self.base.steps, self.base.settings.epochs
        if RunFolder(folder).config.is_file():
            # The run was started before, with the steps that were chosen then.
            steps = int(RunFolder(folder).read_config()["settings"]["steps"])
            epochs = float(f"{base_epochs * steps / base_steps:.3g}")
        else:
            if not self.base.done:
                return None
            if self.grouped.last_step() < MIN_TIMED_FRACTION * self.grouped.steps:
                return None
            ratio = self.grouped.seconds_per_step() / self.base.seconds_per_step()
            # Three significant digits, because epochs may be fewer than one.
            epochs = float(f"{base_epochs * max(1.0, ratio):.3g}")
            steps = round(base_steps * epochs / base_epochs)
        settings = replace(self.base.settings, epochs=epochs, steps=steps)
        return replace(self.base, folder=folder, settings=settings, steps=steps)


class EqualTimeRuns:
    """The equal-time runs of several comparisons. ``runs`` grows as their lengths become known."""

    def __init__(self, comparisons: Sequence[Comparison]) -> None:
        self.comparisons = comparisons
        self.runs: dict[Comparison, TrainingRun] = {}

    def new_runs(self) -> list[TrainingRun]:
        """Return the runs whose length has become known since the last call."""
        new = []
        for comparison in self.comparisons:
            if comparison in self.runs:
                continue
            run = comparison.equal_time_run()
            if run is not None:
                self.runs[comparison] = run
                new.append(run)
        return new


def no_runs() -> list[TrainingRun]:
    return []


def train_all(
    runs: Sequence[TrainingRun],
    at_once: int,
    console: Console,
    new_runs: Callable[[], Sequence[TrainingRun]] = no_runs,
) -> None:
    """Train all runs, ``at_once`` of them in parallel.

    ``new_runs`` is called repeatedly and returns further runs to train.
    """
    waiting = list(runs)
    processes: dict[TrainingRun, subprocess.Popen[bytes]] = {}
    with ProgressBars(console) as progress, stop_at_exit(processes, console):
        while True:
            waiting += new_runs()
            waiting = [run for run in waiting if not run.done]
            while waiting and len(processes) < at_once:
                run = waiting.pop(0)
                processes[run] = run.start_process()
            if not processes:
                return
            time.sleep(POLL_SECONDS)
            progress.update(list(processes))
            for run, process in list(processes.items()):
                if process.poll() is not None:
                    del processes[run]
                    expect_success(run, process)


@contextmanager
def stop_at_exit(
    processes: Mapping[TrainingRun, subprocess.Popen[bytes]], console: Console
) -> Iterator[None]:
    """Stop all processes at the end, also after an error or Ctrl-C.

    Inside the ``with`` block, SIGTERM and a closed terminal (SIGHUP) raise KeyboardInterrupt, as
    Ctrl-C does, so they also stop the processes.
    """
    former_handlers = {}
    # Python allows signal handlers only in the main thread.
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)  # Windows has no SIGHUP.
            # Programs that nohup starts ignore SIGHUP.
            if number is not None and signal.getsignal(number) != signal.SIG_IGN:
                former_handlers[number] = signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        stop(processes.values(), console)
        for number, handler in former_handlers.items():
            signal.signal(number, handler)


def stop(processes: Collection[subprocess.Popen[bytes]], console: Console) -> None:
    """Let all processes end after their current step, with a checkpoint, and wait for them.

    Those that take longer than `STOP_SECONDS` are killed; a second Ctrl-C kills all at once. On
    Windows, processes end without another checkpoint and continue from their last one.
    """
    running = [process for process in processes if process.poll() is None]
    if not running:
        return
    console.print(f"stopping {len(running)} trainings; the same command continues them later")
    try:
        for process in running:
            process.terminate()
        last_time = time.monotonic() + STOP_SECONDS
        for process in running:
            process.wait(max(0.0, last_time - time.monotonic()))
    except (KeyboardInterrupt, subprocess.TimeoutExpired):
        pass
    finally:
        for process in running:
            process.kill()  # This does nothing if the process has ended.


def expect_success(run: TrainingRun, process: subprocess.Popen[bytes]) -> None:
    """Raise an error with the end of the log if the training failed."""
    code = process.returncode
    if code == 0:
        return
    lines = run.log_file.read_text(encoding="utf-8", errors="replace").splitlines()
    end = "\n".join(lines[-LOG_LINES:]) or "(it is empty)"
    # A negative code is the number of a signal, for example 9 if the system had no memory left.
    cause = f"signal {-code} ended it" if code < 0 else f"exit code {code}"
    raise GroupDETRError(
        f"the training of {run} failed: {cause}",
        f"{run.log_file}, which ends with:\n{end}",
        "correct the cause; the same command then continues the trainings",
    )


class ProgressBars:
    """The progress of runs: a bar for each one on a terminal or in a notebook.

    Elsewhere it is a line every 20 s.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.notebook = NotebookText() if in_notebook() else None
        self.notebook_lines: dict[TrainingRun, str] = {}
        self.last_print = 0.0
        self.bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            console=console,
        )
        self.bar_of_run: dict[TrainingRun, TaskID] = {}

    def __enter__(self) -> ProgressBars:
        if self.console.is_terminal:
            self.bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.console.is_terminal:
            self.bars.stop()

    def update(self, runs: Sequence[TrainingRun]) -> None:
        """Show the progress of the runs that are being trained."""
        if self.console.is_terminal:
            for run in runs:
                self._update_bar(run)
        elif self.notebook is not None:
            self._update_notebook(self.notebook, runs)
        elif time.monotonic() - self.last_print > 2 * PLAIN_EVERY:
            self.last_print = time.monotonic()
            self.console.print("; ".join(f"{run}: {run.progress_text()}" for run in runs))

    def _update_notebook(self, notebook: NotebookText, runs: Sequence[TrainingRun]) -> None:
        """Show one line for each run, those that have ended included."""
        if time.monotonic() - self.last_print < NOTEBOOK_EVERY:
            return
        self.last_print = time.monotonic()
        for run in runs:
            bar = text_bar(min(1.0, run.last_step() / run.steps))
            self.notebook_lines[run] = f"{run}  {bar}  {run.progress_text()}"
        notebook.update("\n".join(self.notebook_lines.values()))

    def _update_bar(self, run: TrainingRun) -> None:
        if run not in self.bar_of_run:
            self.bar_of_run[run] = self.bars.add_task(str(run), total=run.steps, text="")
        bar = self.bar_of_run[run]
        self.bars.update(bar, completed=run.last_step(), text=run.progress_text())
