"""The parts of `python -m benchmarks all`: scripts, their options, and what they compare with."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

FOLDER = Path(__file__).parent
# What a part may need from outside, and how to get it. The keys are options of the command.
REMEDIES = {
    "official": (
        "needs a checkout of the authors' branch: git clone -b GroupDETR "
        "https://github.com/Atten4Vis/ConditionalDETR, then --official CHECKOUT"
    ),
    "lwdetr": (
        "needs a checkout of LW-DETR: git clone https://github.com/Atten4Vis/LW-DETR, "
        "then --lwdetr CHECKOUT"
    ),
    "rfdetr": "needs rfdetr: pip install --target FOLDER rfdetr, then --rfdetr FOLDER",
    "ultralytics": (
        "needs ultralytics (AGPL-3.0): pip install --target FOLDER ultralytics, "
        "then --ultralytics FOLDER"
    ),
    "data": "needs a dataset of JPEGs: --data FOLDER",
}


class NotRunError(Exception):
    """A part cannot run. The message says why, and what it needs."""


@dataclass(frozen=True)
class Part:
    """One table: a script with options.

    ``needs`` and ``takes`` are paths that the part cannot run without, and those that it also
    compares with if they are given: name in `REMEDIES` -> option of the script; "" if it is its
    first argument.
    """

    name: str
    title: str
    script: str
    arguments: tuple[str, ...] = ()
    needs: Mapping[str, str] = field(default_factory=dict)
    takes: Mapping[str, str] = field(default_factory=dict)
    on_device: bool = True  # False: what is measured runs on the CPU only
    # Options with --quick that differ from those of the script's own --quick
    quick_arguments: tuple[str, ...] = ()

    def command(self, paths: Mapping[str, Path | None], quick: bool, device: str) -> list[str]:
        """Return the arguments of the script, without its own path; `NotRunError` without a peer.

        ``paths`` has a path or None for every name in `REMEDIES`.
        """
        for name in self.needs:
            if paths[name] is None:
                raise NotRunError(REMEDIES[name])
        arguments: list[str] = []
        for name, option in {**self.needs, **self.takes}.items():
            path = paths[name]
            if path is None:
                continue
            arguments += [option, str(path)] if option else [str(path)]
        arguments += self.arguments
        if quick:
            arguments += [*self.quick_arguments, "--quick"]
        if self.on_device:
            arguments += ["--device", device]
        return arguments


PARTS = (
    Part(
        "step",
        "What K groups cost in a training step",
        "step.py",
        ("--groups", "1", "5", "11", "--group-chunk", "1"),
        quick_arguments=("--groups", "1", "11"),
    ),
    Part(
        "step-coco",
        "The same with images of COCO's size, where backbone and encoder are most of the work",
        "step.py",
        ("--batch", "1", "--height", "800", "--width", "1333", "--group-chunk", "1"),
        quick_arguments=("--height", "400", "--width", "667"),
    ),
    Part(
        "official",
        "A training step compared with that of the authors' branch",
        "official.py",
        needs={"official": ""},
    ),
    Part(
        "rf-detr",
        "RF-DETR-nano here and in rfdetr",
        "rf_detr.py",
        takes={"rfdetr": ""},
    ),
    Part(
        "criterion",
        "Matching and losses compared with other criteria",
        "criterion.py",
        takes={"lwdetr": "--lwdetr", "rfdetr": "--rfdetr"},
    ),
    Part("solvers", "Solvers of assignment problems", "solvers.py", on_device=False),
    Part(
        "attention",
        "Self-attention of groups and cross-attention",
        "attention.py",
        takes={"lwdetr": "--lwdetr"},
    ),
    Part("deformable", "Deformable attention", "deformable.py"),
    Part("masks", "Masks in training with groups", "masks.py"),
    Part(
        "growth",
        "How costs grow with groups, queries, objects, classes, and sizes",
        "growth.py",
    ),
    Part("ranks", "How training grows with the number of processes", "ranks.py"),
    Part("loading", "Reading annotations", "loading.py", ("compare",), on_device=False),
    Part(
        "data",
        "Decoding and augmenting images",
        "data.py",
        needs={"data": ""},
    ),
    Part("check", "Checking the images of a dataset", "check.py", on_device=False),
    Part("evaluation", "COCO's metrics", "evaluation.py", on_device=False),
    Part("predict", "Inference of one image, and what it costs beside the network", "predict.py"),
    Part(
        "folder",
        "Images a second of `predict FOLDER`",
        "folder.py",
        takes={"rfdetr": "--rfdetr", "ultralytics": "--ultralytics"},
        on_device=False,
    ),
    Part("startup", "The time until a command begins its work", "startup.py", on_device=False),
    Part("export", "Latency of exported detectors", "export.py", on_device=False),
)
# Scripts that are no part, and why
OTHERS = {
    "backbone_families.py": "prints a table of the documentation, which has no times",
    "huggingface.py": "trains detectors for hours",
    "label_errors.py": "needs a trained run",
    "sharding.py": "needs several GB of memory, or several GPUs",
    "queued_steps.py": "shows what a GPU does in a step; gpu.sh runs it",
}


def part_of(name: str) -> Part:
    """Return the part of this name; the program ends with a message if there is none."""
    for part in PARTS:
        if part.name == name:
            return part
    names = ", ".join(part.name for part in PARTS)
    sys.exit(f"there is no benchmark {name!r}\nbenchmarks: {names}")
