"""Short training runs, started as a user starts them, and readers of what they wrote."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from shlex import split
from typing import Any

import torch

from groupdetr.cli.main import main
from groupdetr.experiments.by_name import EXPERIMENTS
from groupdetr.paper.parallel_runs import log_file
from groupdetr.paper.trainings import StoredTraining
from groupdetr.registry import experiment
from groupdetr.tasks.registry import task_class

# Presets that train on a CPU. LW-DETR-tiny is a published detector, and not one of them.
TINY_PRESETS = [
    name
    for name in EXPERIMENTS
    if name.endswith(("-tiny", "-micro")) and name != "lw-detr-tiny" and "/" not in name
]
# Those of them that detect objects in single images, not in scenes of several cameras.
IMAGE_PRESETS = [
    name for name in TINY_PRESETS if task_class(experiment(name).task).input_kind == "images"
]
# Options of `groupdetr train` for a very small detector and a short training on small images.
SMALL_MODEL = split(
    "--set channels=32 num_heads=2 dim_feedforward=32 decoder_layers=2 num_queries=8"
)
SMALL_SETTINGS = split("--groups 2 --imgsz 48 --batch 4 --workers 0 --threads 1 --device cpu")


def train_arguments(data: Path, out: Path, *options: str) -> list[str]:
    """Return the arguments of `groupdetr train` for a very small Conditional DETR.

    ``options`` override those of the small detector and its short training.
    """
    model = ["--model", "conditional-detr-tiny"]
    return ["train", str(data), *model, "--out", str(out), *SMALL_MODEL, *SMALL_SETTINGS, *options]


def train(data: Path, out: Path, *options: str) -> Path:
    """Train in this process to a successful end, and return the folder of the run."""
    assert main(train_arguments(data, out, *options)) == 0
    return out


def train_here(run: StoredTraining) -> subprocess.Popen[bytes]:
    """Run a training of the paper in this process, in the place of `parallel_runs.start_process`.

    It takes seconds to start another process. Return one that ends at once.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    with log_file(run).open("a") as log, redirect_stdout(log):
        assert main(run.command()[1:]) == 0
    return subprocess.Popen([sys.executable, "-S", "-c", ""])


def python_command(*arguments: str) -> list[str]:
    """Return the command that runs `groupdetr` with these arguments in another process."""
    return [sys.executable, "-m", "groupdetr", *arguments]


def environment() -> dict[str, str]:
    """Return the environment for other processes: that of this one, with one thread each."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def torchrun(
    num_processes: int,
    arguments: Sequence[str],
    program: Sequence[str] = ("-m", "groupdetr"),
) -> subprocess.CompletedProcess[str]:
    """Run ``program`` in several processes that communicate over gloo, as torchrun does.

    The system chooses a port that is free.
    """
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(num_processes)]
    launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
    launcher += ["--local-addr", "127.0.0.1"]
    return subprocess.run(
        [sys.executable, *launcher, *program, *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=900,  # seconds; it only ends what hangs
        check=False,
    )


def printed_number(program: str, *arguments: str, env: dict[str, str]) -> int:
    """Run a Python program in another process and return the number that it prints."""
    command = [sys.executable, "-c", program, *arguments]
    return int(subprocess.run(command, env=env, capture_output=True, check=True).stdout)


def read_log(run: Path) -> list[dict[str, Any]]:
    """Return the records of log.jsonl."""
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def losses_by_step(run: Path) -> dict[int, dict[str, float]]:
    """Return the losses by name, for every logged step."""
    return {record["step"]: record["losses"] for record in read_log(run) if "losses" in record}


def grad_norms_by_step(run: Path) -> dict[int, float]:
    """Return the norm of the gradient before clipping, for every logged step."""
    return {record["step"]: record["norm"] for record in read_log(run) if "norm" in record}


def evaluations(run: Path) -> list[dict[str, Any]]:
    """Return the records of all evaluations without times and memory, which vary between runs."""
    varying = ("seconds", "cpu_seconds", "peak_memory_mb")
    records = []
    for record in read_log(run):
        if "instability" in record:
            records.append({name: record[name] for name in record if name not in varying})
    return records


def load_checkpoint(run: Path) -> dict[str, Any]:
    """Return the content of last.pt."""
    return torch.load(run / "weights/last.pt", weights_only=True)


def is_identical(a: Any, b: Any) -> bool:
    """True if two checkpoints, or parts of them, are equal bit for bit. Times are not compared."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        names = [name for name in a if "seconds" not in str(name)]
        return a.keys() == b.keys() and all(is_identical(a[name], b[name]) for name in names)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(is_identical, a, b))
    return bool(a == b)
