"""Several trainings in parallel, each in its own process.

Some trainings start later: those whose length depends on how long others take, and those that start
from the weights of another.
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
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from groupdetr.console.progress import (
    PLAIN_EVERY,
    format_duration,
    format_percent,
    format_times,
    text_bar,
)
from groupdetr.console.text import quantity
from groupdetr.errors import GroupDETRError
from groupdetr.paper.trainings import StoredTraining
from groupdetr.tasks.registry import task_class
from groupdetr.visualize.display import NOTEBOOK_EVERY, NotebookText, in_notebook

POLL_SECONDS = 0.5  # between two checks of the processes
STOP_SECONDS = 60.0  # for the current step and a checkpoint, until a process is killed
LOG_LINES = 15  # of a training that failed, in the error message

Process = subprocess.Popen[bytes]


def log_file(run: StoredTraining) -> Path:
    """Return the file with the output of the process of a training."""
    return run.folder / "train.log"


def progress_text(run: StoredTraining) -> str:
    """Return the progress in percent, the main metric of the last evaluation, and times.

    The times are those that the training has taken, and that it will probably still take.
    """
    step, steps = run.last_step(), run.steps
    if not steps:
        return "starting"
    parts = [f"{100 * step / steps:.0f} %"]
    evaluations = run.run.evaluations()
    if evaluations:
        metric = task_class(run.training.experiment.task).metrics[0]
        value = evaluations[-1][metric]
        parts.append(f"{metric} {format_percent(math.nan if value is None else value)}")
    if step:
        parts.append(format_times(run.seconds(), min(1.0, step / steps)))
    return ", ".join(parts)


def start_process(run: StoredTraining) -> Process:
    """Start a training, or resume it if it was stopped. Its output goes to its log.

    It is in a session of its own, so that Ctrl-C only reaches this program, which then stops all
    trainings.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", *run.command()]
    with log_file(run).open("ab") as log:
        return subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )


def train_all(
    needed: Callable[[], Sequence[StoredTraining]],
    at_once: int,
    console: Console,
) -> None:
    """Train everything that is needed and not done, ``at_once`` trainings in parallel.

    ``needed`` is called repeatedly, because it may return more when some trainings are done. A
    training that starts from the weights of another waits for it.
    """
    processes: dict[StoredTraining, Process] = {}
    started: set[StoredTraining] = set()
    changed = True
    with ProgressBars(console) as progress, stop_at_exit(processes, console):
        while True:
            if changed:
                # What is needed only changes when a training ends.
                runs = needed()
                progress.expect(runs)
                for run in ready(runs):
                    if run not in started and len(processes) < at_once:
                        processes[run] = start_process(run)
                        started.add(run)
            if not processes:
                return
            time.sleep(POLL_SECONDS)
            progress.update(list(processes))
            changed = False
            for run, process in list(processes.items()):
                if process.poll() is not None:
                    del processes[run]
                    expect_success(run, process)
                    changed = True


def ready(runs: Sequence[StoredTraining]) -> list[StoredTraining]:
    """Return the trainings that are not done and can start now, parents included."""
    found: dict[StoredTraining, None] = {}
    for run in runs:
        current: StoredTraining | None = run
        while current is not None and not current.done:
            parent = current.parent
            if parent is None or parent.done:
                found[current] = None
                break
            current = parent
    return list(found)


@contextmanager
def stop_at_exit(processes: Mapping[StoredTraining, Process], console: Console) -> Iterator[None]:
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


def stop(processes: Collection[Process], console: Console) -> None:
    """Let all processes end after their current step, with a checkpoint, and wait for them.

    Those that take longer than `STOP_SECONDS` are killed; a second Ctrl-C kills all at once. On
    Windows, processes end without another checkpoint and continue from their last one.
    """
    running = [process for process in processes if process.poll() is None]
    if not running:
        return
    count = quantity(len(running), "training")
    console.print(f"stopping {count}; the same command continues them later")
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


def expect_success(run: StoredTraining, process: Process) -> None:
    """Raise an error with the end of the log if the training failed."""
    code = process.returncode
    if code == 0 and run.done:
        return
    lines = log_file(run).read_text(encoding="utf-8", errors="replace").splitlines()
    end = "\n".join(lines[-LOG_LINES:]) or "(it is empty)"
    # A negative code is the number of a signal, for example 9 if the system had no memory left.
    cause = f"signal {-code} ended it" if code < 0 else f"exit code {code}"
    raise GroupDETRError(
        f"the training {run} failed: {cause}",
        f"{log_file(run)}, which ends with:\n{end}",
        "correct the cause; the same command then continues the trainings",
    )


class ProgressBars:
    """The progress of trainings: a bar for each one, and one for all, on a terminal.

    In a notebook it is a text that changes, and elsewhere a line every 20 s.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.notebook = NotebookText() if in_notebook() else None
        self.notebook_lines: dict[StoredTraining, str] = {}
        self.last_print = 0.0
        self.start_time = time.monotonic()
        self.expected: dict[StoredTraining, int] = {}  # the steps of every training
        self.taken: dict[StoredTraining, int] = {}  # those that it has taken
        self.steps_at_start = 0
        self.bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            console=console,
        )
        self.bar_of_run: dict[StoredTraining, TaskID] = {}
        self.total_bar: TaskID | None = None

    def __enter__(self) -> ProgressBars:
        if self.console.is_terminal:
            self.bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.console.is_terminal:
            self.bars.stop()

    def expect(self, runs: Sequence[StoredTraining]) -> None:
        """Take note of all trainings that are needed, for the time that is left."""
        for run in runs:
            if run in self.expected or not run.steps:
                continue
            self.expected[run] = run.steps
            self.taken[run] = min(run.last_step(), run.steps)
            self.steps_at_start += self.taken[run]

    def all_text(self) -> str:
        """Return the times of all trainings together: what has passed, and what is left.

        What is left assumes that a step of each takes equally long.
        """
        total, done = sum(self.expected.values()), sum(self.taken.values())
        passed = time.monotonic() - self.start_time
        new = done - self.steps_at_start
        left = passed / new * (total - done) if new > 0 else math.nan
        return f"{format_duration(passed)} passed, {format_duration(left)} left"

    def update(self, runs: Sequence[StoredTraining]) -> None:
        """Show the progress of the trainings that are running."""
        for run in runs:
            if run.steps:
                self.expected[run] = run.steps
                self.taken[run] = min(run.last_step(), run.steps)
        if self.console.is_terminal:
            self._update_bars(runs)
        elif self.notebook is not None:
            self._update_notebook(self.notebook, runs)
        elif time.monotonic() - self.last_print > 2 * PLAIN_EVERY:
            self.last_print = time.monotonic()
            lines = [f"{run}: {progress_text(run)}" for run in runs]
            self.console.print("\n".join([*lines, f"all trainings: {self.all_text()}"]))

    def _update_notebook(self, notebook: NotebookText, runs: Sequence[StoredTraining]) -> None:
        """Show one line for each training, those that have ended included."""
        if time.monotonic() - self.last_print < NOTEBOOK_EVERY:
            return
        self.last_print = time.monotonic()
        for run in runs:
            bar = text_bar(min(1.0, run.last_step() / (run.steps or math.inf)))
            self.notebook_lines[run] = f"{run}  {bar}  {progress_text(run)}"
        notebook.update("\n".join([*self.notebook_lines.values(), self.all_text()]))

    def _update_bars(self, runs: Sequence[StoredTraining]) -> None:
        if self.total_bar is None:
            self.total_bar = self.bars.add_task("all trainings", total=1.0, text="")
        total = sum(self.expected.values())
        fraction = sum(self.taken.values()) / total if total else 0.0
        self.bars.update(self.total_bar, completed=fraction, text=self.all_text())
        for run in runs:
            if run not in self.bar_of_run:
                self.bar_of_run[run] = self.bars.add_task(str(run), total=run.steps, text="")
            bar = self.bar_of_run[run]
            text = progress_text(run)
            self.bars.update(bar, total=run.steps, completed=run.last_step(), text=text)
