"""How many images `groupdetr check` checks in a second, compared with decoding them by Pillow.

    python benchmarks/check.py [DATA] [--images 1000] [--rounds 5]

Without DATA, images of 640 pixels are drawn. "headers only" is ``groupdetr check --no-decode``,
which finds missing images and wrong sizes, but no broken ones. "second time" is a check that finds
the results of an earlier one in the cache; a dataset with fewer than 1,000 images has none. Times
are process time of one thread. "all cores" is the number of images in a second of wall time with
all threads that the command uses by default; it needs a quiet machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import measure
import tyro
from huggingface_hub import constants
from PIL import Image

import groupdetr
from groupdetr.data.checked_images import MIN_IMAGES
from groupdetr.data.synthetic import SyntheticConfig, write


@dataclass
class Options:
    data: tyro.conf.Positional[Path | None] = None
    images: int = 1000  # that are drawn
    side: int = 640  # of the images that are drawn, in pixels
    rounds: int = 5
    quick: bool = False  # fewer images and rounds
    out: Path | None = None  # JSON


QUICK = {"images": 60, "rounds": 2}
USUAL = "Pillow, decode only"


def decode_all(files: Sequence[Path]) -> None:
    for file in files:
        with Image.open(file) as image:
            image.convert("RGB")


def compare(data: Path, rounds: int) -> dict[str, dict[str, Any]]:
    """Return a row for decoding by Pillow and for each way to check the images."""
    report = groupdetr.check(data, decode=False, workers=1, cache=False)
    assert report.dataset is not None, report.errors
    splits = report.dataset.splits.values()
    files = [record.path for split in splits for record in split.records]
    checks: dict[str, Callable[..., object]] = {
        "check": partial(groupdetr.check, data, cache=False),
        "check, headers only": partial(groupdetr.check, data, decode=False, cache=False),
    }
    if len(files) >= MIN_IMAGES:
        checks["check, second time"] = partial(groupdetr.check, data, cache=True)
    runs = {USUAL: measure.timed(partial(decode_all, files))}
    for name, check in checks.items():
        runs[name] = measure.timed(partial(check, workers=1))
    timings = measure.time_interleaved(runs, rounds)
    rows: dict[str, dict[str, Any]] = {}
    for name in runs:
        milliseconds = timings.ms(name) / len(files)
        rows[name] = {
            "image, ms": milliseconds,
            "images a second": 1000 / milliseconds,
            "speed-up": timings.speed_up(name, over=USUAL),
        }
    for name, check in checks.items():
        start = time.perf_counter()
        check()
        rows[name]["all cores, images a second"] = len(files) / (time.perf_counter() - start)
    return rows


def main(options: Options) -> None:
    with (
        TemporaryDirectory() as folder,
        patch.object(constants, "HF_ASSETS_CACHE", str(Path(folder, "cache"))),
    ):
        data = options.data
        if data is None:
            data = Path(folder, "drawn")
            config = SyntheticConfig(image_size=options.side, max_objects=10)
            write(config, data, {"train": options.images})
        rows = compare(data, options.rounds)
    measure.show(options, rows, options.out)


if __name__ == "__main__":
    main(measure.parse(Options, QUICK))
