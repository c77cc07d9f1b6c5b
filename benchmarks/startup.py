"""How long does a command take until its work begins, compared with the import of PyTorch?

    python benchmarks/startup.py

Every line runs in a new process, and its CPU time is compared with that of ``import torch`` in the
same round. The lines with the name of a command are what it imports; `val` and `ui` import as much
as `predict`. The backbones of most detectors need neither timm nor torchvision; the line with timm
is for the others. The last lines run no network.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import measure

TIMM = "groupdetr.modeling.backbones.timm_backbone"
PROGRAMS = {
    "import torch": ["-c", "import torch"],
    "import torchvision": ["-c", "import torchvision"],
    "import timm": ["-c", "import timm.models"],
    "predict": ["-c", "import groupdetr.workflows.predict"],
    "predict, a backbone of timm": ["-c", f"import groupdetr.workflows.predict, {TIMM}"],
    "check": ["-c", "import groupdetr.workflows.check"],
    "export": ["-c", "import groupdetr.workflows.export"],
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
    environment = dict(os.environ)
    # Python keeps the bytecode of modules, as it does for users.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return {"run": seconds, "all": seconds}


def main(options: Options) -> None:
    for arguments in PROGRAMS.values():
        run(arguments)  # writes bytecode, and reads files into the memory of the system
    runs = {name: lambda a=arguments: run(a) for name, arguments in PROGRAMS.items()}
    timings = measure.time_interleaved(runs, options.rounds)
    rows = {
        name: {"CPU, s": timings.ms(name) / 1000, "of torch": timings.ratio(name, "import torch")}
        for name in runs
    }
    measure.show(options, rows, options.out)


if __name__ == "__main__":
    main(measure.parse(Options, QUICK))
