"""A run that is stopped at any moment, even by a kill, resumes with bit-identical results."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from shlex import split
from typing import IO

import pytest

from groupdetr.cli.main import main
from groupdetr.engine.run_folder import RunFolder
from groupdetr.files.writing import write_atomically
from tests.runs import (
    environment,
    evaluations,
    is_identical,
    load_checkpoint,
    losses_by_step,
    read_log,
    train,
    train_arguments,
)

# With dropout, warm-up and a moving average of the weights.
OPTIONS = split("--steps 12 --warmup 3 --ema 0.9 --set dropout=0.1 num_queries=8")
PAUSED_TRAINING = Path(__file__).with_name("paused_training.py")


@pytest.fixture(scope="module")
def uninterrupted(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped."""
    return train(shapes, tmp_path_factory.mktemp("runs") / "uninterrupted", *OPTIONS)


@pytest.mark.parametrize("workers", ["0", "1"])
def test_2n_steps_equal_n_steps_resume_and_n_steps_bit_for_bit(
    uninterrupted: Path, shapes: Path, tmp_path: Path, workers: str
) -> None:
    """The run is stopped in the middle of an epoch, after an evaluation."""
    options = (*OPTIONS, "--workers", workers)
    run = train(shapes, tmp_path / "run", *options, "--stop-after", "8")
    assert load_checkpoint(run)["progress"]["step"] == 8
    assert main(["train", "--resume", str(run)]) == 0
    assert is_identical(load_checkpoint(run), load_checkpoint(uninterrupted))
    assert losses_by_step(run) == losses_by_step(uninterrupted)
    assert evaluations(run) == evaluations(uninterrupted)


def test_a_run_with_chunked_groups_resumes_bit_for_bit(shapes: Path, tmp_path: Path) -> None:
    options = ("--model", "dn-detr-tiny", "--steps", "4", "--group-chunk", "1")
    uninterrupted = train(shapes, tmp_path / "uninterrupted", *options)
    run = train(shapes, tmp_path / "run", *options, "--stop-after", "2")
    assert main(["train", "--resume", str(run)]) == 0
    assert is_identical(load_checkpoint(run), load_checkpoint(uninterrupted))


def test_the_log_of_a_resumed_run_has_every_step_once(shapes: Path, tmp_path: Path) -> None:
    """A killed run may have logged steps after its last checkpoint. They are taken again."""
    run = train(shapes, tmp_path / "run", "--steps", "9", "--save-every", "4", "--stop-after", "6")
    assert load_checkpoint(run)["progress"]["step"] == 6
    RunFolder(run).append({"step": 7, "losses": {}})
    assert main(["train", "--resume", str(run)]) == 0
    steps = [record["step"] for record in read_log(run) if "losses" in record]
    assert steps == [1, 2, 3, 4, 5, 6, 7, 8, 9]


def test_a_killed_run_loses_only_the_steps_after_its_last_checkpoint(
    uninterrupted: Path, shapes: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = train_arguments(shapes, run, *OPTIONS, "--save-every", "2")
    signal_at_step(run, arguments, step=7, signal_number=None)
    assert load_checkpoint(run)["progress"]["step"] == 6
    assert max(losses_by_step(run)) == 7
    (run / "weights/.last.pt.1.part").write_bytes(b"cut short")
    assert main(["train", "--resume", str(run)]) == 0
    assert is_identical(load_checkpoint(run), load_checkpoint(uninterrupted))
    assert losses_by_step(run) == losses_by_step(uninterrupted)
    assert evaluations(run) == evaluations(uninterrupted)
    assert not list((run / "weights").glob(".*")), "no unfinished files remain"


@pytest.mark.slow
@pytest.mark.fair_sample
def test_a_killed_training_of_rf_detr_resumes_bit_for_bit(shapes: Path, tmp_path: Path) -> None:
    """Its batches have squares of several sizes, and its moving average has a warm-up."""
    options = split(
        "--model rf-detr-micro --steps 6 --save-every 2 --imgsz 64 --multi-scale per-batch "
        "--ema 0.9 --ema-warmup 2"
    )
    uninterrupted = train(shapes, tmp_path / "uninterrupted", *options)
    run = tmp_path / "run"
    signal_at_step(run, train_arguments(shapes, run, *options), step=5, signal_number=None)
    assert load_checkpoint(run)["progress"]["step"] == 4
    assert main(["train", "--resume", str(run)]) == 0
    assert is_identical(load_checkpoint(run), load_checkpoint(uninterrupted))
    assert losses_by_step(run) == losses_by_step(uninterrupted)
    assert evaluations(run) == evaluations(uninterrupted)


@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_nothing(shapes: Path, tmp_path: Path) -> None:
    options = split("--steps 60 --save-every 1 --set dropout=0.1 num_queries=8")
    uninterrupted = train(shapes, tmp_path / "uninterrupted", *options)
    run = tmp_path / "run"
    rng = random.Random(0)
    for _ in range(20):
        if (run / "config.yaml").exists():
            arguments = ["train", "--resume", str(run)]
        else:
            arguments = train_arguments(shapes, run, *options)
        process = start(arguments)
        time.sleep(rng.uniform(1, 9))
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
    assert main(["train", "--resume", str(run)]) == 0
    assert is_identical(load_checkpoint(run), load_checkpoint(uninterrupted))
    assert losses_by_step(run) == losses_by_step(uninterrupted)
    assert evaluations(run) == evaluations(uninterrupted)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals to other processes")
def test_ctrl_c_loses_no_step(uninterrupted: Path, shapes: Path, tmp_path: Path) -> None:
    """SIGTERM has the same effect, as tests/engine/test_faults.py shows."""
    run = tmp_path / "run"
    arguments = train_arguments(shapes, run, *OPTIONS)
    assert signal_at_step(run, arguments, step=3, signal_number=signal.SIGINT) == 130
    assert load_checkpoint(run)["progress"]["step"] == max(losses_by_step(run)) == 3
    assert main(["train", "--resume", str(run)]) == 0
    assert is_identical(load_checkpoint(run), load_checkpoint(uninterrupted))


def start(
    arguments: list[str], program: Sequence[str] = ("-m", "groupdetr")
) -> subprocess.Popen[bytes]:
    """Start `groupdetr`, or another program, in another process."""
    command = [sys.executable, *program, *arguments]
    return subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL)


def signal_at_step(
    run: Path, arguments: list[str], step: int, signal_number: signal.Signals | None
) -> int:
    """Start a training, send it a signal after this step, and return its exit code.

    None kills it. It waits for the signal, so the speed of this process does not matter.
    """
    files = run.with_name("pause")
    files.mkdir()
    process = start(arguments, program=[str(PAUSED_TRAINING), str(step), str(files)])
    while not (files / "paused").exists():
        assert process.poll() is None, "the training ended before the signal"
        time.sleep(0.01)
    if signal_number is None:
        process.kill()
    else:
        process.send_signal(signal_number)
        (files / "go").touch()
    return process.wait()


def test_an_interrupted_write_leaves_the_former_content(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    path.write_bytes(b"before")

    def write_partly(file: IO[bytes]) -> None:
        file.write(b"aft")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, write_partly)
    assert path.read_bytes() == b"before"


def test_an_unfinished_last_line_of_the_log_is_not_read(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.append({"step": 1, "loss": 2.0})
    with run.log.open("a") as file:
        file.write('{"step": 2, "lo')
    assert [record["step"] for record in run.records()] == [1]
    run.rewind(1)
    run.append({"step": 2, "loss": 1.0})
    assert [record["step"] for record in run.records()] == [1, 2]


def test_options_given_with_resume_override_those_of_the_run(shapes: Path, tmp_path: Path) -> None:
    run = train(shapes, tmp_path / "run", "--steps", "2")
    assert main(["train", "--resume", str(run), "--steps", "4"]) == 0
    assert load_checkpoint(run)["progress"]["step"] == 4


def test_a_run_is_not_overwritten(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(shapes, tmp_path / "run", "--steps", "1")
    assert main(train_arguments(shapes, run, "--steps", "1")) == 2
    assert "--resume" in capsys.readouterr().err


def test_a_checkpoint_of_another_model_is_refused_with_a_remedy(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(shapes, tmp_path / "run", "--steps", "1")
    assert main(["train", "--resume", str(run), "--groups", "3"]) == 2
    error = capsys.readouterr().err
    assert "last.pt" in error
    assert "--weights" in error
