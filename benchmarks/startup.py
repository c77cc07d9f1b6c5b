"""How long does a command take until its work begins, compared with the import of PyTorch?

    python benchmarks/startup.py

Every line runs in a new process, and its CPU time is compared with that of ``import torch`` in the
same round. timm and torchvision are libraries that the networks need. ``network`` is what commands
import that run a network, such as `groupdetr predict`; the last lines need no network.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import measure

PROGRAMS = {
    "import torch": ["-c", "import torch"],
    "import torchvision": ["-c", "import torchvision"],
    "import timm": ["-c", "import timm.models"],
    "network": ["-c", "import groupdetr.tasks.detection2d.prediction_command"],
    "groupdetr predict --help": ["-m", "groupdetr", "predict", "--help"],
    "groupdetr presets": ["-m", "groupdetr", "presets"],
}


@dataclass
class Options:
    rounds: int = 7
    device: str = "cpu"  # nothing runs on a GPU
    quick: bool = False  # one round
    out: Path | None = None  # JSON


QUICK = {"rounds": 1}


def run(arguments: list[str]) -> measure.Times:
    """Run Python with these arguments, and return the CPU time of the process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return {"run": seconds, "all": seconds}


def main(options: Options) -> None:
    runs = {name: lambda a=arguments: run(a) for name, arguments in PROGRAMS.items()}
    timings = measure.time_interleaved(runs, options.rounds)
    rows = {
        name: {"CPU, s": timings.ms(name) / 1000, "of torch": timings.ratio(name, "import torch")}
        for name in runs
    }
    measure.show(options, rows, options.out)


if __name__ == "__main__":
    main(measure.parse(Options, QUICK))
