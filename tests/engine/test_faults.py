"""A training that is disturbed loses nothing: after a resume, the final weights are the same."""

from __future__ import annotations

import ast
import errno
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from shlex import split
from shutil import copytree
from typing import IO, Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from groupdetr.checkpoints import checked_file
from groupdetr.cli.main import main
from groupdetr.engine.run_folder import RunFolder
from groupdetr.engine.trainer import Trainer
from groupdetr.engine.training_step import TrainingStep
from tests.runs import (
    environment,
    evaluations,
    is_identical,
    load_checkpoint,
    losses_by_step,
    python_command,
    read_log,
    train,
    train_arguments,
)
from tests.test_structure import TREES

OPTIONS = split("--steps 8 --warmup 3 --ema 0.9 --set dropout=0.1 num_queries=8")
LIMIT = 900  # seconds, after which other processes hang; they take tens of seconds if not
WITHOUT_SIGNALS = pytest.mark.skipif(
    sys.platform == "win32", reason="Windows has no signals to other processes"
)


@pytest.fixture(scope="module")
def undisturbed(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(shapes, tmp_path_factory.mktemp("runs") / "undisturbed", *OPTIONS)


@pytest.fixture(scope="module")
def stopped(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same training, stopped before its first evaluation, that after step 6."""
    run = tmp_path_factory.mktemp("runs") / "stopped"
    return train(shapes, run, *OPTIONS, "--stop-after", "5")


def resume(run: Path) -> None:
    assert main(["train", "--resume", str(run)]) == 0


def resume_in_two_processes(run: Path) -> None:
    log = run.with_name("resume.log")
    with log.open("wb") as output:
        process = start(["train", "--resume", str(run)], processes=2, output=output)
        assert process.wait(LIMIT) == 0, log.read_text()


def assert_same_end(run: Path, expected: Path) -> None:
    """Assert that two runs have ended with the same weights, log and evaluations."""
    assert is_identical(load_checkpoint(run), load_checkpoint(expected))
    assert is_identical(load_file(RunFolder(run).best), load_file(RunFolder(expected).best))
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
    to_host = TrainingStep.to_host

    def failing(self: TrainingStep, *arguments: Any) -> Any:
        if self.state.progress.step == 7:
            raise ZeroDivisionError("in the eighth step")
        return to_host(self, *arguments)

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(TrainingStep, "to_host", failing)
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
    def spoil(self: TrainingStep, *_: Any) -> Any:
        next(self.state.model.parameters()).data.fill_(torch.nan)
        raise ZeroDivisionError

    run = tmp_path / "run"
    monkeypatch.setattr(TrainingStep, "to_host", spoil)
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
    stopped: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = copytree(stopped, tmp_path / "run")
    fsync = os.fsync

    def failing(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if f".{name}." in path and load_checkpoint(run)["progress"]["step"] >= 5:
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
    assert "copy the run there, and resume the copy" in error
    assert "--out" not in error
    assert hidden_files(run) == []
    resume(run)
    assert_same_end(run, undisturbed)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux that is full")
def test_a_log_that_cannot_be_written_is_named_and_the_step_is_kept(
    undisturbed: Path,
    shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    append = RunFolder.append

    def failing(self: RunFolder, record: Any) -> None:
        if record["step"] == 4:
            self.log = Path("/dev/full")
        append(self, record)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "append", failing)
        assert main(train_arguments(shapes, run, *OPTIONS)) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert load_checkpoint(run)["progress"]["step"] == 4
    resume(run)
    assert is_identical(load_checkpoint(run), load_checkpoint(undisturbed))
    assert evaluations(run) == evaluations(undisturbed)


@pytest.mark.parametrize("name", ["best.safetensors", "best.json", "results.csv", "last.pt"])
def test_an_evaluation_whose_files_cannot_be_written_is_done_again(
    name: str, undisturbed: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the best one here, and the later one must not take its place."""
    run = tmp_path / "run"
    replace = Path.replace

    def failing(self: Path, target: Path) -> Path:
        steps = [record["step"] for record in RunFolder(run).records()]
        if target.name == name and 6 in steps:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", failing)
        assert main(train_arguments(shapes, run, *OPTIONS)) == 2
    assert hidden_files(run) == []
    # An evaluation in the log is one whose weights are written.
    logged = 6 in [record["step"] for record in RunFolder(run).evaluations()]
    assert logged == (name in ("results.csv", "last.pt"))
    resume(run)
    assert_same_end(run, undisturbed)
    best, expected = (json.loads(RunFolder(r).best_metrics.read_text()) for r in (run, undisturbed))
    assert (best["step"], best["AP"]) == (expected["step"], expected["AP"])


SMALL_DISK = """
mkdir disk && mount -t tmpfs -o size=$1 tmpfs disk
shift
"$@" --out disk/run
code=$?
df disk >&2
mount -o remount,size=200m disk
python=$1
$python -m groupdetr train --resume disk/run && cp -r disk/run run
exit $code
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a file system of Linux")
@pytest.mark.parametrize("copies", [0.5, 1.5, 2.5])
def test_a_training_on_a_full_disk_ends_with_its_path_and_goes_on_when_there_is_room(
    copies: float, undisturbed: Path, shapes: Path, tmp_path: Path
) -> None:
    """The disk has room for all files of the run and some copies of last.pt, or has less."""
    probe = ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    if shutil.which("unshare") is None or subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("this user cannot mount a file system")
    last = RunFolder(undisturbed).last.stat().st_size
    size = int(copies * last) + 200_000
    command = python_command(*train_arguments(shapes, tmp_path / "unused", *OPTIONS))
    in_own_namespace = ["unshare", "-m", "sh", "-c", SMALL_DISK, "sh", str(size)]
    process = subprocess.run(
        [*in_own_namespace, *command],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert "Traceback" not in process.stderr
    assert process.returncode == 2, process.stderr
    assert "No space left on device" in process.stderr
    assert "MiB are free" in process.stderr
    if copies > 1:
        assert_same_end(tmp_path / "run", undisturbed)


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


def flip_a_bit(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 16]) + content[middle + 1 :]


def delete(file: Path) -> None:
    file.unlink()


def damage(file: Path) -> None:
    file.write_bytes(flip_a_bit(file.read_bytes()))


def test_a_damaged_checkpoint_is_replaced_by_the_one_before_it(
    undisturbed: Path, stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copytree(stopped, tmp_path / "run")
    last = RunFolder(run).last
    damage(last)
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


@pytest.mark.parametrize("harm", [delete, damage])
def test_lost_results_of_the_last_evaluation_are_written_again_by_a_resume(
    harm: Any,
    undisturbed: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also if the training is complete, and no other evaluation would follow."""
    run = copytree(undisturbed, tmp_path / "run")
    harm(RunFolder(run).best)
    RunFolder(run).log.write_text("")
    resume(run)
    output = "".join(capsys.readouterr().out.split("\n"))
    assert "best.safetensors: " in output
    assert "log.jsonl: it lacks the last evaluation; this is written again" in output
    average = load_checkpoint(run)["ema"]
    for name, tensor in load_file(RunFolder(run).best).items():
        assert torch.equal(tensor, average[f"module.{name}"])
    (again,) = evaluations(run)
    assert again["step"] == 8
    assert again["AP"] == evaluations(undisturbed)[-1]["AP"]


# clocks


class WrongClock:
    """The time of day of a machine whose clock is moved back by an hour at every reading."""

    def __init__(self) -> None:
        self.now = 4e9

    def __call__(self) -> float:
        self.now -= 3600
        return self.now


def test_a_clock_that_is_moved_back_changes_nothing(
    undisturbed: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", WrongClock())
    run = train(shapes, tmp_path / "run", *OPTIONS, "--stop-after", "3")
    in_the_future = 4e9
    for file in run.rglob("*"):
        os.utime(file, (in_the_future, in_the_future))
    resume(run)
    assert_same_end(run, undisturbed)
    seconds = [record["seconds"] for record in read_log(run)]
    assert seconds == sorted(seconds)
    assert 0 < seconds[0] < seconds[-1] < 600


def test_a_training_of_some_minutes_does_not_follow_the_clock(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", WrongClock())
    run = train(shapes, tmp_path / "run", "--minutes", "0.02")
    progress = load_checkpoint(run)["progress"]
    assert read_log(run)[-1]["seconds"] + progress["evaluation_seconds"] >= 0.02 * 60


def test_no_duration_is_measured_with_the_time_of_day() -> None:
    """`time.time` jumps when somebody corrects the clock; `time.monotonic` does not."""
    readings = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today"}
    callers = [
        module
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in readings
    ]
    # The first compares it with the times of files, which the same clock gives. The second writes
    # when a command was started.
    assert set(callers) == {"groupdetr.data.checked_images", "groupdetr.engine.run_folder"}


# in other processes, at random moments


def start(
    arguments: list[str],
    processes: int = 1,
    program: Sequence[str] = ("-m", "groupdetr"),
    output: IO[bytes] | int = subprocess.DEVNULL,
) -> subprocess.Popen[bytes]:
    """Start ``program`` in a process group of its own, in several processes if told so."""
    launcher: list[str] = []
    if processes > 1:
        launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
        launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
    return subprocess.Popen(
        [sys.executable, *launcher, *program, *arguments],
        env=environment(),
        stdout=output,
        stderr=output,
        start_new_session=True,
        preexec_fn=reset_signals,
    )


def reset_signals() -> None:
    """Undo what shells and nohup do with programs that they start in the background.

    Such programs ignore Ctrl-C or a closed terminal, and so do all that they start.
    """
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        signal.signal(getattr(signal, name), signal.SIG_DFL)


def wait_for_step(process: subprocess.Popen[bytes], run: Path, step: int) -> None:
    """Wait until the log of a run has this step."""
    folder = RunFolder(run)
    last_time = time.monotonic() + LIMIT
    while not any(record["step"] >= step for record in folder.records()):
        assert process.poll() is None, "the training ended before it was disturbed"
        assert time.monotonic() < last_time, "the training hangs"
        time.sleep(0.01)


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
    elif target.startswith("rank "):
        trainers(process)[int(target[5:])].send_signal(number)
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
FAIR_KILLS = [("evaluation", "SIGTERM", 0), ("save", "SIGKILL", 0)]


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
    code = process.wait(LIMIT)
    if "worker" in kind:
        assert code == 0, "it goes on with fewer workers"
    elif "KILL" not in kind:
        assert code == 130
        assert load_checkpoint(run)["progress"]["step"] >= max(losses_by_step(run))
    resume(run)
    assert_same_end(run, long_run)
    assert hidden_files(run) == []


# Thirty kills of five sorts: three signals, each with two seeds.
DISTURBED_TRAINING = Path(__file__).with_name("disturbed_training.py")
SIGNALS = ("SIGKILL", "SIGTERM", "SIGINT")
KILLS = [
    pytest.param(
        *(sort, name, seed),
        marks=FAIR if (sort, name, seed) in FAIR_KILLS else SLOW,
        id=f"{sort}-{name}-{seed}",
    )
    for sort in ("process", "group", "evaluation", "save")
    for name in SIGNALS
    for seed in range(2)
]


@WITHOUT_SIGNALS
@pytest.mark.parametrize(("sort", "name", "seed"), KILLS)
def test_a_kill_changes_nothing(
    sort: str, name: str, seed: int, long_run: Path, shapes: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    rng = random.Random(f"{sort} {name} {seed}")
    arguments = train_arguments(shapes, run, *LONG)
    if sort in ("evaluation", "save"):
        left_alone, part = rng.randint(2, 5), rng.random()
        program = [str(DISTURBED_TRAINING), sort, str(left_alone), str(part), name]
        process = start(arguments, program=program)
    else:
        process = start(arguments)
        wait_for_step(process, run, rng.randint(1, 10))
        time.sleep(rng.uniform(0, 0.5))
        disturb(process, f"{name} to the {sort}")
    code = process.wait(LIMIT)
    if name == "SIGKILL":
        assert code == -signal.SIGKILL
    else:
        assert code == 130
        assert load_checkpoint(run)["progress"]["step"] >= max(losses_by_step(run))
    resume(run)
    assert_same_end(run, long_run)
    assert hidden_files(run) == []


TWO = split("--steps 40 --save-every 3 --set dropout=0.1 num_queries=8")


@pytest.fixture(scope="module")
def two_processes_run(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "two"
    assert start(train_arguments(shapes, run, *TWO), processes=2).wait(LIMIT) == 0
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
    process.wait(LIMIT)
    assert load_checkpoint(run)["progress"]["step"] >= max(losses_by_step(run))
    resume_in_two_processes(run)
    assert_same_end(run, two_processes_run)


@WITHOUT_SIGNALS
@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", SIGNALS)
def test_a_kill_of_one_of_two_processes_changes_nothing(
    name: str, rank: int, two_processes_run: Path, shapes: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    rng = random.Random(f"{name} {rank}")
    process = start(train_arguments(shapes, run, *TWO), processes=2)
    wait_for_step(process, run, rng.randint(1, 10))
    time.sleep(rng.uniform(0, 0.5))
    disturb(process, f"{name} to rank {rank}")
    assert process.wait(LIMIT) != 0
    if name != "SIGKILL":
        assert load_checkpoint(run)["progress"]["step"] >= max(losses_by_step(run))
    resume_in_two_processes(run)
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
    assert process.wait(LIMIT) != 0
    assert load_checkpoint(run)["progress"]["step"] >= max(losses_by_step(run))
    arguments = ["train", "--resume", str(run), "--save-every", "3"]
    assert start(arguments, processes=2).wait(LIMIT) == 0
    assert_same_end(run, two_processes_run)


@WITHOUT_SIGNALS
@pytest.mark.slow
def test_kills_of_processes_with_sharded_parameters_change_nothing(
    shapes: Path, tmp_path: Path
) -> None:
    undisturbed, run = tmp_path / "undisturbed", tmp_path / "run"
    arguments = train_arguments(shapes, undisturbed, *TWO, "--fsdp")
    assert start(arguments, processes=2).wait(LIMIT) == 0
    process = start(train_arguments(shapes, run, *TWO, "--fsdp"), processes=2)
    for step, kind in ((4, "SIGTERM to rank 1"), (12, "SIGKILL to rank 0")):
        wait_for_step(process, run, step)
        disturb(process, kind)
        assert process.wait(LIMIT) != 0
        if "KILL" not in kind:
            assert load_checkpoint(run)["progress"]["step"] >= max(losses_by_step(run))
        process = start(["train", "--resume", str(run)], processes=2)
    assert process.wait(LIMIT) == 0
    assert_same_end(run, undisturbed)


# two launchers, as on two machines


def start_launchers(arguments: list[str], logs: Path) -> list[subprocess.Popen[bytes]]:
    """Start two launchers with one process each. Their errors go to the files ``logs``/0 and 1."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{server.getsockname()[1]}"
    options = f"--nnodes 2 --rdzv-backend c10d --rdzv-endpoint {endpoint} --rdzv-id test"
    launchers = []
    for number in range(2):
        # Which of them is the host of the rendezvous must not depend on the name of this machine.
        own = f"--local-addr 127.0.0.1 --rdzv-conf is_host={number == 0}"
        command = [sys.executable, "-m", "torch.distributed.run", *split(f"{options} {own}")]
        with (logs / str(number)).open("wb") as log:
            launchers.append(
                subprocess.Popen(
                    [*command, "-m", "groupdetr", *arguments],
                    env={**environment(), "GLOO_SOCKET_IFNAME": "lo"},
                    stdout=log,
                    stderr=log,
                    preexec_fn=reset_signals,
                )
            )
    return launchers


def wait_for_end(processes: list[psutil.Process]) -> None:
    """Wait until processes have ended that are not children of this one."""

    def has_ended(process: psutil.Process) -> bool:
        try:
            # Nobody may be there to collect the exit code of a process without a parent.
            return bool(process.status() == psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return True

    last_time = time.monotonic() + LIMIT
    while not all(map(has_ended, processes)):
        assert time.monotonic() < last_time, "a process does not end"
        time.sleep(0.1)


@WITHOUT_SIGNALS
@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the name of the loopback")
@pytest.mark.parametrize(
    ("name", "is_machine", "rank"),
    [("SIGKILL", True, 0), ("SIGKILL", True, 1), ("SIGKILL", False, 0), ("SIGTERM", False, 1)],
)
def test_a_launcher_that_ends_ends_the_other_one_with_a_checkpoint(
    name: str,
    is_machine: bool,
    rank: int,
    two_processes_run: Path,
    shapes: Path,
    tmp_path: Path,
) -> None:
    """With the whole machine, or alone: then the processes that it has started are left behind."""
    run = tmp_path / "run"
    launchers = start_launchers(train_arguments(shapes, run, *TWO), tmp_path)
    try:
        wait_for_step(launchers[0], run, 4)
        by_rank = {trainers(launcher)[0].environ()["RANK"]: launcher for launcher in launchers}
        killed, other = by_rank[str(rank)], by_rank[str(1 - rank)]
        trained = trainers(killed)
        for process in [psutil.Process(killed.pid), *(trained if is_machine else [])]:
            process.send_signal(getattr(signal, name))
        other.wait(LIMIT)
        killed.wait(LIMIT)
        wait_for_end(trained)
    finally:
        for launcher in launchers:
            launcher.kill()
    output = (tmp_path / str(launchers.index(other))).read_text()
    if is_machine:
        assert "error: another process of this training has ended" in output
    elif rank == 1:
        assert "resume with: groupdetr train --resume" in output
    assert "site-packages/groupdetr" not in output
    assert "groupdetr/engine" not in output, "no traceback of ours"
    saved = load_checkpoint(run)["progress"]["step"]
    if not (is_machine and rank == 0):
        assert saved >= max(losses_by_step(run))
    resume_in_two_processes(run)
    assert_same_end(run, two_processes_run)
