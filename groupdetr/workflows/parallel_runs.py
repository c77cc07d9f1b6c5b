"""Trainings side by side, each in a process of its own; some are only known once others tell how long they take."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from groupdetr.engine.progress import PLAIN_EVERY, percent
from groupdetr.engine.run_folder import RunFolder
from groupdetr.errors import GroupDETRError
from groupdetr.experiments import experiment
from groupdetr.settings import Settings

TELLING = 0.25  # how much of a training tells how long it will take


@dataclass(frozen=True)
class Arm:
    """One training, in a process and a folder of its own. ``settings`` say for how long, with which seed."""

    model: str
    data: Path
    folder: Path
    groups: int
    settings: Settings
    steps: int
    label: str = ""  # what tells it from the others, if K does not

    @property
    def run(self) -> RunFolder:
        return RunFolder(self.folder)

    @property
    def done(self) -> bool:
        return any(record["step"] >= self.steps for record in self.run.evaluations())

    def __str__(self) -> str:
        model = f"{self.model}, " if self.label else ""
        return (
            f"{model}K = {self.groups}, seed {self.settings.seed}, {self.settings.epochs:g} epochs"
        )

    def pace(self) -> tuple[int, float]:
        """Steps taken, and seconds for each; (0, 0) before the first is logged."""
        records = self.run.records()
        return (
            (records[-1]["step"], records[-1]["seconds"] / records[-1]["step"])
            if records
            else (0, 0.0)
        )

    def words(self) -> str:
        """How far it is."""
        step, _ = self.pace()
        evaluated = self.run.evaluations()
        score = experiment(self.model).task.figures[0]
        reached = f", {score} {percent(evaluated[-1][score])}" if evaluated else ""
        return f"{100 * step / self.steps:.0f} %{reached}"

    def start(self) -> subprocess.Popen[bytes]:
        """From the beginning, or from where it was stopped."""
        self.folder.mkdir(parents=True, exist_ok=True)
        chosen = [
            str(self.data),
            "--model",
            self.model,
            "--groups",
            str(self.groups),
            "--out",
            str(self.folder),
        ]
        new = [*chosen, "--no-check", *self.settings.as_flags()]
        arguments = ["--resume", str(self.folder)] if self.run.config.is_file() else new
        with (self.folder / "train.log").open("ab") as log:
            command = [sys.executable, "-m", "groupdetr", "train", *arguments]
            return subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
            )


@dataclass(frozen=True)
class Pair:
    """One group and K, for one seed."""

    base: Arm
    grouped: Arm

    def longer(self) -> Arm | None:
        """The baseline for as many epochs as take the time of the grouped training; None before that is known."""
        folder = self.base.folder.with_name(f"{self.base.folder.name}-longer")
        if RunFolder(folder).config.is_file():
            epochs = RunFolder(folder).read_config()["settings"]["epochs"]
        else:
            (_, base), (step, grouped) = self.base.pace(), self.grouped.pace()
            if not self.base.done or step < TELLING * self.grouped.steps:
                return None
            epochs = float(
                f"{self.base.settings.epochs * max(1.0, grouped / base):.3g}"
            )  # also of less than one
        steps = round(self.base.steps * epochs / self.base.settings.epochs)
        settings = replace(self.base.settings, epochs=epochs, steps=steps)
        return replace(self.base, folder=folder, settings=settings, steps=steps)


class Longer:
    """The longer baselines of several pairs: ``arms`` grows as paces become known."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self.pairs = pairs
        self.arms: dict[Pair, Arm] = {}

    def __call__(self) -> list[Arm]:
        """Those that have become known since the last call."""
        known = {pair: pair.longer() for pair in self.pairs if pair not in self.arms}
        new = {pair: arm for pair, arm in known.items() if arm is not None}
        self.arms |= new
        return list(new.values())


def train_all(
    arms: Sequence[Arm], at_once: int, console: Console, more: Callable[[], Sequence[Arm]] = list
) -> None:
    """Train ``at_once`` side by side until all is done, also what ``more`` comes up with meanwhile."""
    waiting = list(arms)
    running: dict[Arm, subprocess.Popen[bytes]] = {}
    with Watching(console) as show, ending(running):
        while True:
            waiting = [arm for arm in [*waiting, *more()] if not arm.done]
            while waiting and len(running) < at_once:
                arm = waiting.pop(0)
                running[arm] = arm.start()
            if not running:
                return
            time.sleep(0.5)
            for arm in [arm for arm, process in running.items() if process.poll() is not None]:
                expect_success(arm, running.pop(arm))
            show(list(running))


@contextmanager
def ending(running: Mapping[Arm, subprocess.Popen[bytes]]) -> Iterator[None]:
    """Whatever happens here, no training goes on unseen: SIGTERM ends them all as Ctrl-C does."""
    in_main = (
        threading.current_thread() is threading.main_thread()
    )  # signals cannot be taken elsewhere
    before = signal.signal(signal.SIGTERM, signal.default_int_handler) if in_main else None
    try:
        yield
    finally:
        for process in running.values():
            process.terminate()
        if in_main:
            signal.signal(signal.SIGTERM, before)


def expect_success(arm: Arm, process: subprocess.Popen[bytes]) -> None:
    if process.returncode != 0:
        lines = (arm.folder / "train.log").read_text(errors="replace").splitlines()
        raise GroupDETRError(
            f"the training of {arm} failed: {lines[-1] if lines else process.returncode}",
            str(arm.folder / "train.log"),
            "look at this log; the same command goes on where the training was",
        )


class Watching:
    """A bar for each training on a terminal; elsewhere a line now and then."""

    def __init__(self, console: Console) -> None:
        self.console, self.spoken = console, 0.0
        columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}")
        self.bars = Progress(*columns, console=console, disable=not console.is_terminal)
        self.tasks: dict[Arm, Callable[..., None]] = {}

    def __enter__(self) -> Watching:
        self.bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bars.stop()

    def __call__(self, arms: Sequence[Arm]) -> None:
        if self.console.is_terminal:
            for arm in arms:
                if arm not in self.tasks:
                    self.tasks[arm] = partial(
                        self.bars.update, self.bars.add_task(str(arm), total=arm.steps, text="")
                    )
                self.tasks[arm](completed=arm.pace()[0], text=arm.words())
        elif time.monotonic() - self.spoken > 2 * PLAIN_EVERY:
            self.spoken = time.monotonic()
            self.console.print("; ".join(f"{arm}: {arm.words()}" for arm in arms))
