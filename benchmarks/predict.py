"""How fast is inference, compared with transformers, and what does an image cost beside it?

    python benchmarks/predict.py

Conditional DETR with a ResNet-50 runs in evaluation mode on one image of noise, here and in
transformers, with random weights of their own, each in a process of its own. ``beside the network``
is the rest of `groupdetr predict`, for a photograph of 640 x 480: it is read and resized, and the
copy with its objects is drawn and written. Threads do this while the network computes.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import measure
import torch
from PIL import Image
from torch import nn

import groupdetr
from groupdetr.data.dataset import to_pixels
from groupdetr.data.freed_memory import keep_freed_memory
from groupdetr.data.image_input import to_rgb
from groupdetr.data.transforms import val_transform
from groupdetr.engine.precision import Precision, in_precision
from groupdetr.structures.detections import Detections
from groupdetr.tasks.detection2d.result import Result

PHOTOGRAPH = (640, 480)  # width and height


@dataclass
class Options:
    height: int = 800
    width: int = 1333
    objects: int = 8  # of the photograph
    rounds: int = 5
    threads: int = 1
    device: str = "cpu"
    quick: bool = False  # a small image
    out: Path | None = None  # JSON


QUICK = {"height": 96, "width": 128, "rounds": 1}


def transformers_model() -> nn.Module:
    """Return the detector of transformers with random weights."""
    from transformers import ConditionalDetrConfig, ConditionalDetrForObjectDetection

    config = ConditionalDetrConfig(use_pretrained_backbone=False)
    return ConditionalDetrForObjectDetection(config)


class OwnProcess:
    """A network in a process of its own, which runs it once whenever it is asked.

    In one process, networks would share what is set for it, such as whether the C library keeps
    memory that was freed.
    """

    def __init__(self, network: str, options: Options) -> None:
        spawn = get_context("spawn")
        self.pool = ProcessPoolExecutor(1, spawn, initializer=load, initargs=(network, options))

    def __call__(self) -> measure.Times:
        return self.pool.submit(run_once).result()


# In such a process: a function that runs the network once.
loaded: Callable[[], measure.Times]


def load(network: str, options: Options) -> None:
    """Load a network, and keep freed memory for ours, as `groupdetr predict` does."""
    global loaded
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = torch.device(options.device)
    pixels = torch.randn(3, options.height, options.width, device=device)
    if network == "transformers":
        theirs = transformers_model().eval().to(device)
        run = partial(theirs, pixels[None])
    else:
        keep_freed_memory()
        ours = groupdetr.create_model("conditional-detr-r50").eval().to(device)
        run = partial(ours, groupdetr.Images.from_list([pixels]))
    precision: Precision = "bf16" if network.endswith("bf16") else "fp32"

    def timed_run() -> measure.Times:
        with torch.inference_mode(), in_precision(device, precision):
            stopwatch = measure.Stopwatch(options.device)
            run()
            stopwatch.lap("run")
        return stopwatch.times

    loaded = timed_run


def run_once() -> measure.Times:
    return loaded()


def compare_networks(options: Options) -> dict[str, dict[str, Any]]:
    """Return a row for each network, and for ours in bf16."""
    runs = {name: OwnProcess(name, options) for name in ("transformers", "ours", "ours, bf16")}
    timings = measure.time_interleaved(runs, options.rounds)
    for process in runs.values():
        process.pool.shutdown()
    return {
        name: {"image, ms": timings.ms(name), "speed-up": timings.speed_up(name, "transformers")}
        for name in runs
    }


def random_photograph(generator: torch.Generator) -> Image.Image:
    """Return noise of a lower resolution, which compresses about as well as a photograph."""
    width, height = PHOTOGRAPH
    noise = torch.randint(0, 256, (height // 8, width // 8, 3), generator=generator)
    small = Image.fromarray(noise.to(torch.uint8).numpy())
    return small.resize(PHOTOGRAPH, Image.Resampling.BICUBIC)


def time_beside_the_network(options: Options) -> dict[str, dict[str, Any]]:
    """Return a row for reading and for drawing an image, on the CPU."""
    width, height = PHOTOGRAPH
    generator = torch.Generator().manual_seed(0)
    photograph = random_photograph(generator)
    corners = torch.rand(options.objects, 2, 2, generator=generator).sort(dim=1).values
    detections = Detections(
        boxes=corners.flatten(1) * torch.tensor([width, height, width, height]),
        scores=torch.rand(options.objects, generator=generator).sort(descending=True).values,
        labels=torch.zeros(options.objects, dtype=torch.int64),
    )
    result = Result(photograph, detections, [(1, "object")])
    resize = val_transform(min(options.height, options.width))
    with TemporaryDirectory() as folder:
        file, copy = Path(folder, "image.jpg"), Path(folder, "annotated.jpg")
        photograph.save(file)

        def run() -> measure.Times:
            stopwatch = measure.Stopwatch()
            image = to_rgb(file)
            stopwatch.lap("read")
            to_pixels(image, resize)
            stopwatch.lap("resize")
            result.save(copy)
            stopwatch.lap("draw and write")
            return stopwatch.times

        timings = measure.time_interleaved({"image": run}, 4 * options.rounds)
    return {
        f"beside the network: {part}": {"image, ms": timings.ms("image", part)}
        for part in timings.parts("image")
    }


def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    rows = {**compare_networks(options), **time_beside_the_network(options)}
    measure.show(options, rows, options.out)


if __name__ == "__main__":
    main(measure.parse(Options, QUICK))
