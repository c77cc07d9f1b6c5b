"""The latency of exported detectors in each runtime, compared with PyTorch.

    python benchmarks/export.py [--model rf-detr-nano] [--formats onnx openvino] [--side 384]

A detector with random weights is written as `groupdetr export` writes it, for images of one size,
and every runtime reads the same image of noise. Exported detectors run on the CPU, each with the
same number of threads. "Write" is the process time of the export, and "file" the size of what it
wrote. ``error`` is the largest difference of a score from PyTorch's. Runtimes that are not
installed are left out, with a message.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import measure
import numpy as np
import torch

import groupdetr
from groupdetr.deployment.graph import BoxGraph, GraphOptions
from groupdetr.deployment.runtimes import FORMATS, ExportOptions, Runtime
from groupdetr.deployment.verification import torch_runtime
from groupdetr.errors import UsageError

Format = Literal["torch-export", "onnx", "openvino"]
PYTORCH = "PyTorch"


@dataclass
class Options:
    model: str = "conditional-detr-r50"
    formats: tuple[Format, ...] = ("torch-export", "onnx", "openvino")
    side: int = 640  # of the image, in pixels
    detections: int = 100  # of the image
    rounds: int = 9
    threads: int = 1
    quick: bool = False  # a small detector, and fewer rounds
    out: Path | None = None  # JSON


QUICK = {"model": "conditional-detr-tiny", "side": 192, "rounds": 5}


def create_graph(options: Options) -> BoxGraph:
    """Return the graph of a detector with random weights and one group of queries."""
    torch.manual_seed(0)
    model = groupdetr.create_model(options.model, num_groups=1)
    return BoxGraph(model, GraphOptions(options.detections))


def write(graph: BoxGraph, name: Format, options: Options, file: Path) -> float:
    """Write the graph for a runtime, and return the seconds of process time."""
    export_options = ExportOptions(
        dynamic_batch=False, size=(options.side, options.side), half=False, opset=None
    )
    metadata: dict[str, Any] = {
        "inputs": list(export_options.inputs),
        "outputs": list(graph.outputs),
    }
    start = measure.clock()
    FORMATS[name].write(graph, export_options, metadata, file)
    return measure.clock() - start


def installed(formats: tuple[Format, ...]) -> list[Format]:
    """Return the formats whose packages are installed; the others are named with their remedy."""
    names = []
    for name in formats:
        try:
            FORMATS[name].expect_installed()
        except UsageError as error:
            print(f"{name} is left out: {error.what}; {error.remedy}")
        else:
            names.append(name)
    return names


def timed_run(runtime: Runtime, image: np.ndarray) -> Callable[[], measure.Times]:
    return measure.timed(lambda: runtime(image))


def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    graph = create_graph(options)
    generator = np.random.default_rng(0)
    image = generator.uniform(0, 255, (1, 3, options.side, options.side)).astype(np.float32)
    runtimes = {PYTORCH: torch_runtime(graph)}
    rows: dict[str, dict[str, Any]] = {PYTORCH: {}}
    with TemporaryDirectory() as folder:
        for name in installed(options.formats):
            file = Path(folder, name, f"model{FORMATS[name].ending}")
            file.parent.mkdir()
            rows[name] = {"write, s": write(graph, name, options, file)}
            num_bytes = sum(path.stat().st_size for path in file.parent.iterdir())
            rows[name]["file, MB"] = num_bytes / 1e6
            runtimes[name], _ = FORMATS[name].load(file)

        runs = {name: timed_run(runtime, image) for name, runtime in runtimes.items()}
        timings = measure.time_interleaved(runs, options.rounds)
        expected = runtimes[PYTORCH](image)["scores"]
        for name, runtime in runtimes.items():
            difference = np.abs(runtime(image)["scores"] - expected).max()
            rows[name] = {
                "image, ms": timings.ms(name),
                "speed-up": timings.speed_up(name, over=PYTORCH),
                "error": float(difference),
                **rows[name],
            }
    measure.show(options, rows, options.out)


if __name__ == "__main__":
    main(measure.parse(Options, QUICK))
