"""A training that is disturbed loses nothing: after a resume, the final weights are the same."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from shlex import split
from typing import Any

import psutil
import pytest
import torch

from groupdetr.checkpoints import checked_file
from groupdetr.cli.main import main
from groupdetr.engine.run_folder import RunFolder
from groupdetr.engine.trainer import Trainer
from tests.runs import (
    environment,
    evaluations,
    is_identical,
    load_checkpoint,
    losses_by_step,
    python_command,
    train,
    train_arguments,
)

OPTIONS = split("--steps 8 --warmup 3 --ema 0.9 --set dropout=0.1 num_queries=8")
WITHOUT_SIGNALS = pytest.mark.skipif(
    sys.platform == "win32", reason="Windows has no signals to other processes"
)


@pytest.fixture(scope="module")
def undisturbed(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(shapes, tmp_path_factory.mktemp("runs") / "undisturbed", *OPTIONS)


def resume(run: Path) -> None:
    assert main(["train", "--resume", str(run)]) == 0


def assert_same_end(run: Path, expected: Path) -> None:
    """Assert that two runs have ended with the same weights, log and evaluations."""
    assert is_identical(load_checkpoint(run), load_checkpoint(expected))
    assert losses_by_step(run) == losses_by_step(expected)
    assert evaluations(run) == evaluations(expected)


def hidden_files(run: Path) -> list[str]:
    """Return the names of drafts and locks in the folder of a run."""
    return [file.name for file in run.rglob(".*")]


# what ends a training


def test_a_signal_in_an_evaluation_stops_it_after_a_batch_and_it_is_done_on_resume(
    undisturbed: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []
    on_progress = Trainer.on_evaluation_progress

    def with_signal(self: Trainer, done: int, total: int) -> None:
        batches.append(done)
        signal.raise_signal(signal.SIGTERM)
        on_progress(self, done, total)

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "on_evaluation_progress", with_signal)
        assert main(train_arguments(shapes, run, *OPTIONS)) == 130
    assert batches == [4], "of 6 validation images"
    assert evaluations(run) == []
    assert load_checkpoint(run)["progress"]["evaluation_due"]
    resume(run)
    assert_same_end(run, undisturbed)


def test_any_error_leaves_a_checkpoint_of_the_last_whole_step(
    undisturbed: Path,
    shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    to_host = Trainer.to_host

    def failing(self: Trainer, *arguments: Any) -> Any:
        if self.step == 7:
            raise ZeroDivisionError("in the eighth step")
        return to_host(self, *arguments)

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "to_host", failing)
        with pytest.raises(ZeroDivisionError):
            main(train_arguments(shapes, run, *OPTIONS))
    assert load_checkpoint(run)["progress"]["step"] == 7
    assert f"of step 7; resume with: groupdetr train --resume {run}" in capsys.readouterr().out
    assert hidden_files(run) == []
    resume(run)
    assert_same_end(run, undisturbed)


def test_a_step_that_is_half_done_is_not_saved(
    undisturbed: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = torch.optim.AdamW.step
    calls: list[int] = []

    def half_done(self: Any, *arguments: Any, **keywords: Any) -> Any:
        result = step(self, *arguments, **keywords)
        calls.append(1)
        if len(calls) == 8:
            raise RuntimeError("after the parameters have changed")
        return result

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", half_done)
        with pytest.raises(RuntimeError, match="have changed"):
            main(train_arguments(shapes, run, *OPTIONS))
    assert load_checkpoint(run)["progress"]["step"] == 6, "that of the evaluation"
    resume(run)
    assert_same_end(run, undisturbed)


def test_a_state_that_is_not_finite_is_not_saved(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(self: Trainer, *_: Any) -> Any:
        next(self.model.parameters()).data.fill_(torch.nan)
        raise ZeroDivisionError

    run = tmp_path / "run"
    monkeypatch.setattr(Trainer, "to_host", spoil)
    with pytest.raises(ZeroDivisionError):
        main(train_arguments(shapes, run, *OPTIONS))
    assert all(value.isfinite().all() for value in load_checkpoint(run)["model"].values())


# full and failing disks


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("last.pt", errno.ENOSPC),
        ("best.safetensors", errno.EIO),
        ("results.csv", errno.ENOSPC),
    ],
)
def test_a_file_that_cannot_be_written_is_named_and_leaves_no_draft(
    name: str,
    code: int,
    undisturbed: Path,
    shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    train(shapes, run, *OPTIONS, "--stop-after", "2")
    fsync = os.fsync

    def failing(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if f".{name}." in path and load_checkpoint(run)["progress"]["step"] >= 2:
            raise OSError(code, os.strerror(code))
        fsync(descriptor)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("the file of a descriptor is not known")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        assert main(["train", "--resume", str(run)]) == 2
    error = capsys.readouterr().err
    assert os.strerror(code) in error
    assert name in error
    assert "MiB are free" in error
    assert hidden_files(run) == []
    resume(run)
    assert_same_end(run, undisturbed)


def test_a_resumed_run_removes_only_the_drafts_of_a_training(shapes: Path, tmp_path: Path) -> None:
    run = train(shapes, tmp_path / "run", "--steps", "2", "--stop-after", "1")
    drafts = [run / "weights/.last.pt.1.part", run / ".log.jsonl.77.part"]
    (run / "notes").mkdir()
    others = [run / ".notes.tmp", run / ".data.12.part", run / "notes/.last.pt.1.part"]
    for file in drafts + others:
        file.write_text("a draft")
    resume(run)
    assert not any(file.exists() for file in drafts)
    assert all(file.exists() for file in others)


# damaged checkpoints


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip_a_bit(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 16]) + content[middle + 1 :]


def empty(_: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("damage", [cut, flip_a_bit, empty])
def test_a_damaged_checkpoint_is_replaced_by_the_one_before_it(
    damage: Any,
    undisturbed: Path,
    shapes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = train(shapes, tmp_path / "run", *OPTIONS, "--stop-after", "7")
    last = RunFolder(run).last
    last.write_bytes(damage(last.read_bytes()))
    resume(run)
    assert f"{last} cannot be used" in "".join(capsys.readouterr().out.split("\n"))
    checked_file.check(RunFolder(run).previous)
    assert_same_end(run, undisturbed)


def test_without_a_whole_checkpoint_a_run_cannot_be_resumed(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(shapes, tmp_path / "run", "--steps", "2", "--stop-after", "1")
    for file in (RunFolder(run).last, RunFolder(run).previous):
        file.write_bytes(b"")
    assert main(["train", "--resume", str(run)]) == 2
    error = capsys.readouterr().err
    assert "it is empty" in error
    assert "--weights" in error


# in other processes, at random moments


def start(arguments: list[str], processes: int = 1) -> subprocess.Popen[bytes]:
    """Start `groupdetr` in a process group of its own, in several processes if told so."""
    command = python_command(*arguments)
    if processes > 1:
        launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
        launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
        command = [command[0], *launcher, *command[1:]]
    return subprocess.Popen(
        command,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def wait_for_step(process: subprocess.Popen[bytes], run: Path, step: int) -> None:
    """Wait until the log of a run has this step."""
    folder = RunFolder(run)
    for _ in range(12000):
        if any(record["step"] >= step for record in folder.records()):
            return
        assert process.poll() is None, "the training ended before it was disturbed"
        time.sleep(0.01)
    raise TimeoutError


def trainers(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Return the processes that torchrun has started, in the order of their ranks."""
    children = psutil.Process(process.pid).children()
    return sorted((c for c in children if "RANK" in c.environ()), key=lambda c: c.environ()["RANK"])


def disturb(process: subprocess.Popen[bytes], kind: str) -> None:
    """Do one thing to a training, as its name says."""
    name, _, target = kind.partition(" to ")
    number = getattr(signal, name)
    if target == "the process":
        process.send_signal(number)
    elif target == "the group":
        os.killpg(process.pid, number)
    elif target == "a worker":
        workers = psutil.Process(process.pid).children()
        if workers:
            random.Random(0).choice(workers).send_signal(number)
    elif target == "rank 1":
        trainers(process)[1].send_signal(number)
    else:
        raise AssertionError(target)


ONE_PROCESS = [
    "SIGTERM to the group",
    "SIGKILL to the process",
    "SIGKILL to a worker",
    "SIGINT to the group",
    "SIGTERM to the process",
    "SIGTERM to a worker",
    "SIGINT to the process",
    "SIGKILL to the group",
    "SIGHUP to the group",
]
TWO_PROCESSES = ["SIGTERM to rank 1", "SIGTERM to the group", "SIGINT to the group"]
SLOW = [pytest.mark.slow]
FAIR = [pytest.mark.slow, pytest.mark.fair_sample]


def sample(kinds: list[str], fair: int) -> list[Any]:
    """Return parameters, of which CI runs the first ``fair``."""
    return [pytest.param(kind, marks=FAIR if i < fair else SLOW) for i, kind in enumerate(kinds)]


LONG = split(
    "--steps 40 --save-every 3 --warmup 3 --ema 0.9 --set dropout=0.1 num_queries=8 --workers 2"
)


@pytest.fixture(scope="module")
def long_run(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(shapes, tmp_path_factory.mktemp("runs") / "long", *LONG, "--workers", "0")


@WITHOUT_SIGNALS
@pytest.mark.parametrize("kind", sample(ONE_PROCESS, fair=3))
def test_a_training_that_is_disturbed_at_a_random_moment_resumes_bit_for_bit(
    kind: str, long_run: Path, shapes: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    rng = random.Random(kind)
    process = start(train_arguments(shapes, run, *LONG))
    wait_for_step(process, run, rng.randint(1, 10))
    time.sleep(rng.uniform(0, 0.2))
    disturb(process, kind)
    code = process.wait(120)
    if "worker" in kind:
        assert code == 0, "it goes on with fewer workers"
    elif "KILL" not in kind:
        assert code == 130
        assert load_checkpoint(run)["progress"]["step"] >= max(losses_by_step(run))
    resume(run)
    assert_same_end(run, long_run)
    assert hidden_files(run) == []


@WITHOUT_SIGNALS
@pytest.mark.slow
def test_thirty_disturbances_of_five_sorts_change_nothing(shapes: Path, tmp_path: Path) -> None:
    options = split("--steps 400 --save-every 3 --set dropout=0.1 num_queries=8 --workers 2")
    undisturbed = train(shapes, tmp_path / "undisturbed", *options, "--workers", "0")
    run = tmp_path / "run"
    rng = random.Random(0)
    kinds = [kind for kind in ONE_PROCESS[:5] for _ in range(6)]
    rng.shuffle(kinds)
    for kind in kinds:
        is_run = (run / "config.yaml").exists()
        arguments = ["--resume", str(run)] if is_run else []
        former = max(losses_by_step(run), default=0) if is_run else 0
        if former == 400:
            break
        process = start(["train", *arguments] if is_run else train_arguments(shapes, run, *options))
        wait_for_step(process, run, former + 1)
        time.sleep(rng.uniform(0, 0.5))
        if process.poll() is None:
            disturb(process, kind)
            time.sleep(0.2)
        if "worker" in kind and process.poll() is None:
            process.kill()
        process.wait(120)
    resume(run)
    assert_same_end(run, undisturbed)


TWO = split("--steps 40 --save-every 3 --set dropout=0.1 num_queries=8")


@pytest.fixture(scope="module")
def two_processes_run(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "two"
    assert start(train_arguments(shapes, run, *TWO), processes=2).wait(240) == 0
    return run


@WITHOUT_SIGNALS
@pytest.mark.parametrize("kind", sample(TWO_PROCESSES, fair=1))
def test_two_processes_agree_on_a_stop_and_resume_bit_for_bit(
    kind: str, two_processes_run: Path, shapes: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start(train_arguments(shapes, run, *TWO), processes=2)
    wait_for_step(process, run, 4)
    disturb(process, kind)
    process.wait(120)
    assert load_checkpoint(run)["progress"]["step"] >= max(losses_by_step(run))
    assert start(["train", "--resume", str(run)], processes=2).wait(240) == 0
    assert_same_end(run, two_processes_run)


@WITHOUT_SIGNALS
@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_others_with_a_checkpoint(
    two_processes_run: Path, shapes: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start(train_arguments(shapes, run, *TWO, "--save-every", "1000"), processes=2)
    wait_for_step(process, run, 4)
    disturb(process, "SIGKILL to rank 1")
    assert process.wait(120) != 0
    assert load_checkpoint(run)["progress"]["step"] >= max(losses_by_step(run))
    arguments = ["train", "--resume", str(run), "--save-every", "3"]
    assert start(arguments, processes=2).wait(240) == 0
    assert_same_end(run, two_processes_run)
