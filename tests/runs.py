"""Short training runs, as a user would start them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from groupdetr.cli.main import main
from groupdetr.experiments import EXPERIMENTS, experiment

TINY = [
    name for name in EXPERIMENTS if name.endswith("-tiny") and "/" not in name
]  # presets that train on a CPU
OF_PICTURES = [
    name for name in TINY if experiment(name).task.sees == "pictures"
]  # and not of scenes
SMALL = ("--set", "channels=32", "num_heads=2", "hidden=32", "decoder_layers=2", "num_queries=8")
QUICK = (
    "--groups",
    "2",
    "--imgsz",
    "48",
    "--batch",
    "4",
    "--workers",
    "0",
    "--threads",
    "1",
    "--device",
    "cpu",
)


def arguments(data: Path, out: Path, *more: str, model: str = "conditional-detr-tiny") -> list[str]:
    """`groupdetr train` of a very small detector; ``more`` overrides."""
    return ["train", str(data), "--model", model, "--out", str(out), *SMALL, *QUICK, *more]


def train(data: Path, out: Path, *more: str) -> Path:
    """Train in this process."""
    assert main(arguments(data, out, *more)) == 0
    return out


def command(*more: str) -> list[str]:
    return [sys.executable, "-m", "groupdetr", *more]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def torchrun(
    processes: int,
    port: int,
    arguments: Sequence[str],
    program: Sequence[str] = ("-m", "groupdetr"),
) -> subprocess.CompletedProcess[str]:
    """Several processes over gloo, as a user would start them."""
    launch = [
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        str(processes),
        "--master-port",
        str(port),
    ]
    whole = [sys.executable, *launch, *program, *arguments]
    return subprocess.run(
        whole, env=environment(), capture_output=True, text=True, timeout=240, check=False
    )


def log(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def losses(run: Path) -> dict[int, dict[str, float]]:
    """Step -> the named losses."""
    return {record["step"]: record["losses"] for record in log(run) if "losses" in record}


def norms(run: Path) -> dict[int, float]:
    """Step -> the norm of the gradient."""
    return {record["step"]: record["norm"] for record in log(run) if "norm" in record}


def evaluations(run: Path) -> list[dict[str, Any]]:
    """What is logged of every evaluation, times and memory aside."""
    aside = ("seconds", "peak_memory_mb")
    return [
        {k: v for k, v in record.items() if k not in aside}
        for record in log(run)
        if "instability" in record
    ]


def checkpoint(run: Path) -> dict[str, Any]:
    return torch.load(run / "weights/last.pt", weights_only=True)


def same(a: Any, b: Any) -> bool:
    """Bit for bit, through dicts and lists; times aside."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a if "seconds" not in str(k))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)
