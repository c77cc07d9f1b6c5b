"""A run can be stopped at any moment, even by a kill, and goes on as if it had not been."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from groupdetr.cli.main import main
from groupdetr.engine.run_folder import RunFolder, write_atomically
from tests.runs import (
    arguments,
    checkpoint,
    command,
    environment,
    evaluations,
    log,
    losses,
    same,
    train,
)

OPTIONS = ("--steps", "12", "--warmup", "3", "--ema", "0.9")


@pytest.fixture(scope="module")
def uninterrupted(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(
        shapes,
        tmp_path_factory.mktemp("runs") / "whole",
        *OPTIONS,
        "--set",
        "dropout=0.1",
        "num_queries=8",
    )


@pytest.mark.parametrize("workers", ["0", "1"])
def test_2n_steps_equal_n_steps_resume_and_n_steps_bit_for_bit(
    uninterrupted: Path, shapes: Path, tmp_path: Path, workers: str
) -> None:
    """With dropout, augmentation, warm-up and a running mean; stopped amid an epoch, after an evaluation."""
    options = (*OPTIONS, "--set", "dropout=0.1", "num_queries=8", "--workers", workers)
    run = train(shapes, tmp_path / "run", *options, "--stop-after", "8")
    assert checkpoint(run)["progress"]["step"] == 8
    assert main(["train", "--resume", str(run)]) == 0
    assert same(checkpoint(run), checkpoint(uninterrupted))
    assert losses(run) == losses(uninterrupted)
    assert evaluations(run) == evaluations(uninterrupted)


def test_so_do_runs_with_groups_in_chunks(shapes: Path, tmp_path: Path) -> None:
    options = ("--model", "dn-detr-tiny", "--steps", "4", "--group-chunk", "1")
    whole, run = (
        train(shapes, tmp_path / name, *options, *more)
        for name, more in (("a", ()), ("b", ("--stop-after", "2")))
    )
    assert main(["train", "--resume", str(run)]) == 0
    assert same(checkpoint(run), checkpoint(whole))


def test_the_log_of_a_resumed_run_has_every_step_once(shapes: Path, tmp_path: Path) -> None:
    run = train(shapes, tmp_path / "run", "--steps", "9", "--save-every", "4", "--stop-after", "9")
    state = torch.load(run / "weights/last.pt", weights_only=True)
    assert state["progress"]["step"] == 9
    steps = [record["step"] for record in log(run) if "losses" in record]
    assert steps == sorted(set(steps))


def test_a_killed_run_continues_with_nothing_lost_beyond_the_last_save(
    uninterrupted: Path, shapes: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    more = (*OPTIONS, "--set", "dropout=0.1", "num_queries=8", "--save-every", "2")
    kill_after(run, arguments(shapes, run, *more), step=7)
    saved = checkpoint(run)["progress"]["step"]
    assert saved >= 6
    (run / "weights/.last.pt.1.part").write_bytes(b"cut short")
    assert main(["train", "--resume", str(run)]) == 0
    assert same(checkpoint(run), checkpoint(uninterrupted))
    assert losses(run) == losses(uninterrupted)
    assert evaluations(run) == evaluations(uninterrupted)
    assert not list((run / "weights").glob(".*")), "no litter"


@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_nothing(shapes: Path, tmp_path: Path) -> None:
    options = ("--steps", "60", "--save-every", "1", "--set", "dropout=0.1", "num_queries=8")
    whole, run = train(shapes, tmp_path / "whole", *options), tmp_path / "run"
    chance, kills = random.Random(0), 0
    while kills < 20:
        again = (
            ["train", "--resume", str(run)]
            if (run / "config.yaml").exists()
            else arguments(shapes, run, *options)
        )
        process = subprocess.Popen(command(*again), env=environment(), stdout=subprocess.DEVNULL)
        time.sleep(chance.uniform(1, 9))
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
        kills += 1
    assert main(["train", "--resume", str(run)]) == 0
    assert same(checkpoint(run), checkpoint(whole))
    assert losses(run) == losses(whole)
    assert evaluations(run) == evaluations(whole)


def test_ctrl_c_loses_no_step(uninterrupted: Path, shapes: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    whole = arguments(shapes, run, *OPTIONS, "--set", "dropout=0.1", "num_queries=8")
    assert kill_after(run, whole, step=3, number=signal.SIGINT) == 130
    assert checkpoint(run)["progress"]["step"] >= 3
    assert main(["train", "--resume", str(run)]) == 0
    assert same(checkpoint(run), checkpoint(uninterrupted))


def kill_after(run: Path, whole: list[str], step: int, number: int = signal.SIGKILL) -> int:
    """Start, and kill as soon as the log has ``step``; the exit code."""
    process = subprocess.Popen(command(*whole), env=environment(), stdout=subprocess.DEVNULL)
    folder = RunFolder(run)
    for _ in range(6000):
        if any(record["step"] >= step for record in folder.records()):
            break
        assert process.poll() is None, "training ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(number)
    return process.wait()


def test_a_write_that_is_cut_short_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    path.write_bytes(b"before")

    def cut(file: object) -> None:
        file.write(b"aft")  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, cut)
    assert path.read_bytes() == b"before"


def test_a_last_line_cut_short_by_a_kill_is_not_read(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.append({"step": 1, "loss": 2.0})
    with run.log.open("a") as file:
        file.write('{"step": 2, "lo')
    assert [record["step"] for record in run.records()] == [1]
    run.rewind(1)
    run.append({"step": 2, "loss": 1.0})
    assert [record["step"] for record in run.records()] == [1, 2]


def test_options_given_when_resuming_override_the_runs(shapes: Path, tmp_path: Path) -> None:
    run = train(shapes, tmp_path / "run", "--steps", "2")
    assert main(["train", "--resume", str(run), "--steps", "4"]) == 0
    assert checkpoint(run)["progress"]["step"] == 4


def test_a_run_is_not_written_over(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(shapes, tmp_path / "run", "--steps", "1")
    assert main(arguments(shapes, run, "--steps", "1")) == 2
    assert "--resume" in capsys.readouterr().err


def test_a_checkpoint_of_another_model_is_refused_with_a_remedy(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(shapes, tmp_path / "run", "--steps", "1")
    assert main(["train", "--resume", str(run), "--groups", "3"]) == 2
    assert "last.pt" in capsys.readouterr().err
