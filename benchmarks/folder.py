"""How many images a second does `predict FOLDER` process when the network is fast, as on a GPU?

    python benchmarks/folder.py [--rfdetr FOLDER] [--ultralytics FOLDER]

Each tool reads photographs of 640 x 480, prepares them for a network whose images have 384 pixels,
and writes copies with eight objects drawn. The network of each is replaced by a wait of the same
time, in which the processor is free, and by answers that were made before. So the tools differ in
what they do beside the network, and in what they do at the same time. Ours is `groupdetr predict`,
Ultralytics' is ``RTDETR.predict(..., save=True)``, and rfdetr's is the loop of its documentation:
``predict``, two annotators of supervision, and a file.

A folder with the first image is processed before the one with all images, and the rate is that of
the other images. The time of the first image has the start of the tool in it: ours loads its
weights, which the models of the others have in memory already.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from multiprocessing import get_context
from os import devnull
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import measure
import torch
from PIL import Image
from predict import PHOTOGRAPH, random_photograph
from torch import Tensor, nn

import groupdetr
from groupdetr.checkpoints import native
from groupdetr.cli.main import main as groupdetr_command
from groupdetr.registry import recipe_to_dict

OBJECTS = 8
CLASSES = 80
SIDE = 384  # of the input of all tools: RF-DETR nano has no other
CONFIDENT, EMPTY = 3.0, -9.0  # logits of objects, and of all other queries
THRESHOLD = 0.5


@dataclass
class Options:
    images: int = 200
    network_ms: float = 10.0  # of one image
    rounds: int = 5
    workers: int | None = None  # of ours; None: as `groupdetr predict` chooses
    rfdetr: Path | None = None  # a folder of packages with rfdetr in it
    ultralytics: Path | None = None  # a folder of packages with ultralytics in it
    quick: bool = False
    out: Path | None = None  # JSON


QUICK = {"images": 4, "rounds": 1}

# Of the process of one tool: a function that processes a folder of images and writes to another.
process_folder: Callable[[Path, Path], None]


def fixed_answers(num_queries: int, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return logits [1,N,classes] of eight objects, and boxes [1,N,4] cx,cy,w,h in [0,1]."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.full((1, num_queries, num_classes), EMPTY)
    for query in range(OBJECTS):
        logits[0, query, query] = CONFIDENT
    boxes = 0.3 + 0.4 * torch.rand(1, num_queries, 4, generator=generator)
    return logits, boxes


class Wait(nn.Module):
    """A network whose answer is known, and that takes the same time for every image."""

    def __init__(self, answer: Any, seconds: float) -> None:
        super().__init__()
        self.answer, self.seconds = answer, seconds

    def forward(self, *args: object, **kwargs: object) -> Any:
        time.sleep(self.seconds)
        return self.answer


def load_ours(options: Options) -> Callable[[Path, Path], None]:
    model = groupdetr.create_model("rf-detr-micro", num_groups=1).eval()
    with torch.inference_mode():
        outputs = model(groupdetr.Images.from_list([torch.zeros(3, SIDE, SIDE)]))
        answer = outputs.final
        logits, boxes = fixed_answers(answer.logits.shape[-2], answer.logits.shape[-1])
        answer.logits.copy_(logits.view_as(answer.logits))
        answer.boxes.copy_(boxes.view_as(answer.boxes))
    weights = Path(mkdtemp(), "random.safetensors")
    categories = [[row, f"class {row}"] for row in range(answer.logits.shape[-1])]
    recipe = recipe_to_dict(model.recipe)
    native.save(model, weights, {"recipe": recipe, "categories": categories, "imgsz": SIDE})
    network = Wait(outputs, options.network_ms / 1000)
    type(model).forward = lambda *_: network()  # type: ignore[method-assign]

    def run(folder: Path, out: Path) -> None:
        arguments = ["predict", str(weights), str(folder), "--out", str(out)]
        if options.workers is not None:
            arguments += ["--workers", str(options.workers)]
        assert groupdetr_command(arguments) == 0

    return run


def load_rfdetr(options: Options) -> Callable[[Path, Path], None]:
    import rfdetr
    import supervision

    model = rfdetr.RFDETRNano(pretrain_weights=None)
    logits, boxes = fixed_answers(300, 91)
    answer = {"pred_logits": logits, "pred_boxes": boxes}
    model.model.model = Wait(answer, options.network_ms / 1000)
    annotate_boxes, annotate_labels = supervision.BoxAnnotator(), supervision.LabelAnnotator()

    def run(folder: Path, out: Path) -> None:
        out.mkdir()
        for path in sorted(folder.iterdir()):
            image = Image.open(path)
            detections = model.predict(image, threshold=THRESHOLD)
            scores = detections.confidence
            labels = [f"{label} {score:.2f}" for label, score in zip(detections.class_id, scores)]
            annotated = annotate_boxes.annotate(image.copy(), detections)
            annotated = annotate_labels.annotate(annotated, detections, labels)
            annotated.save(out / path.name)

    return run


def load_ultralytics(options: Options) -> Callable[[Path, Path], None]:
    from ultralytics import RTDETR

    model = RTDETR("rtdetr-l.yaml")
    logits, boxes = fixed_answers(300, CLASSES)
    scores, labels = logits.sigmoid().max(-1, keepdim=True)
    answer = torch.cat([boxes, scores, labels], dim=-1)  # [1,N,6], as its decoder returns them
    network = Wait(answer, options.network_ms / 1000)

    def run(folder: Path, out: Path) -> None:
        results = model.predict(
            folder,
            save=True,
            conf=THRESHOLD,
            stream=True,
            verbose=False,
            project=out,
            device="cpu",
            imgsz=SIDE,
        )
        for number, _ in enumerate(results):
            if number == 0:
                model.predictor.inference = network

    # The network itself runs in the first image, and then no more.
    with TemporaryDirectory() as folder:
        Image.new("RGB", PHOTOGRAPH).save(Path(folder, "image.jpg"))
        run(Path(folder), Path(folder, "out"))
    model.predictor.inference = network
    return run


TOOLS = {"Ultralytics": load_ultralytics, "rfdetr": load_rfdetr, "ours": load_ours}


def load(tool: str, packages: Path | None, options: Options) -> None:
    global process_folder
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if packages is not None:
        sys.path.append(str(packages))
    process_folder = TOOLS[tool](options)


def timed_run(first: Path, folder: Path) -> measure.Times:
    """Process two folders, ``first`` with one image of the other one.

    Return the seconds of wall time of the first image, and of the other images.
    """
    first_seconds, all_seconds = seconds_of(first), seconds_of(folder)
    others = all_seconds - first_seconds
    return {"first": first_seconds, "others": others, "all": all_seconds}


def seconds_of(folder: Path) -> float:
    """Process a folder of images, and return the seconds of wall time."""
    with TemporaryDirectory() as out, open(devnull, "w") as nothing:
        start = time.perf_counter()
        with redirect_stdout(nothing), redirect_stderr(nothing):
            process_folder(folder, Path(out, "out"))
        seconds = time.perf_counter() - start
        num_copies = len(list(Path(out).rglob("*.jpg")))
    assert num_copies == len(list(folder.iterdir())), num_copies
    return seconds


def write_photographs(folder: Path, count: int) -> None:
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for number in range(count):
        random_photograph(generator).save(folder / f"{number:03}.jpg", quality=90)


def start_tools(options: Options) -> Iterator[tuple[str, ProcessPoolExecutor]]:
    """Start every tool that is given, each in a process of its own."""
    packages = {"Ultralytics": options.ultralytics, "rfdetr": options.rfdetr, "ours": None}
    for tool, folder in packages.items():
        if folder is None and tool != "ours":
            continue
        spawn = get_context("spawn")
        yield tool, ProcessPoolExecutor(1, spawn, load, (tool, folder, options))


def main(options: Options) -> None:
    tools = dict(start_tools(options))
    with TemporaryDirectory() as name:
        first, folder = Path(name, "first"), Path(name, "all")
        write_photographs(first, 1)
        write_photographs(folder, options.images)
        runs = {
            tool: lambda pool=pool: pool.submit(timed_run, first, folder).result()
            for tool, pool in tools.items()
        }
        timings = measure.time_interleaved(runs, options.rounds)
    for pool in tools.values():
        pool.shutdown()
    rows: dict[str, dict[str, Any]] = {}
    for tool in tools:
        milliseconds = timings.ms(tool, "others") / (options.images - 1)
        rows[tool] = {
            "images a second": 1000 / milliseconds,
            "beside the network, ms": milliseconds - options.network_ms,
            "first image, ms": timings.ms(tool, "first"),
        }
        if tool != "ours":
            rows[tool]["ours is as fast"] = timings.speed_up("ours", over=tool, part="others")
            rows[tool]["with the first"] = timings.speed_up("ours", over=tool)
    measure.show(options, rows, options.out)


if __name__ == "__main__":
    main(measure.parse(Options, QUICK))
