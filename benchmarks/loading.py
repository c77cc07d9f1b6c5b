"""What reading the annotations of COCO's train images costs, compared with pycocotools.

    python benchmarks/loading.py draw coco.json [--images 118287]
    python benchmarks/loading.py compare coco.json [--rounds 3] [--masks] [--before CHECKOUT]
    python benchmarks/loading.py compare [--quick]  # draws a file itself

``draw`` writes a file with random objects whose sizes are those of COCO's train2017: 7.3 objects an
image, and polygons of about 24 points. ``compare`` reads it by pycocotools and by this library,
each in a process of its own, in turns. ``--before`` is a checkout of this library to compare with.
"CPU" is process time of reading alone, without imports. "Peak" and "kept" are resident memory that
reading has added, while it ran and after it. "Shared" is the part of the kept memory that is mapped
from files: all processes of a machine have it together.
"""

from __future__ import annotations

import json
import os
import random
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import psutil
import tyro

NUM_CATEGORIES = 80
QUICK_IMAGES = 5000


@dataclass
class Draw:
    """Write a file of random annotations."""

    file: tyro.conf.Positional[Path]
    images: int = 118_287
    seed: int = 0


@dataclass
class Compare:
    """Compare the ways to read a file. Without FILE, one is drawn."""

    file: tyro.conf.Positional[Path | None] = None
    images: int = 118_287  # of the file that is drawn
    rounds: int = 3
    masks: bool = False
    before: Path | None = None
    quick: bool = False  # at most 5,000 images, in one round
    out: Path | None = None  # JSON


@dataclass
class Read:
    """Read a file once, and print seconds and bytes as JSON. `Compare` runs this."""

    file: tyro.conf.Positional[Path]
    by: str = "groupdetr"
    masks: bool = False


def draw(options: Draw) -> None:
    generator = np.random.default_rng(options.seed)
    with options.file.open("w") as file:
        file.write('{"info": {"description": "drawn by benchmarks/loading.py"}, "licenses": [], ')
        file.write('"images": [')
        for image in range(options.images):
            name = f"{image:012}.jpg"
            entry = {
                "license": 3,
                "file_name": name,
                "coco_url": f"http://images.example.org/train2017/{name}",
                "height": 480,
                "width": 640,
                "date_captured": "2013-11-14 11:18:45",
                "flickr_url": f"http://farm9.example.org/8186/8119368305_{image:08x}_z.jpg",
                "id": image,
            }
            file.write((", " if image else "") + json.dumps(entry))
        file.write('], "annotations": [')
        number = 0
        # COCO's annotations are in no order of their images.
        for image in generator.permutation(options.images).tolist():
            for _ in range(int(generator.poisson(7.27))):
                number += 1
                file.write((", " if number > 1 else "") + _annotation(number, image, generator))
        categories = [
            {"supercategory": "thing", "id": i + 1, "name": f"class {i + 1}"}
            for i in range(NUM_CATEGORIES)
        ]
        file.write('], "categories": ' + json.dumps(categories) + "}")
    print(f"{options.images} images, {number} annotations, {options.file.stat().st_size:,} bytes")


def _annotation(number: int, image: int, generator: np.random.Generator) -> str:
    """Return an annotation as JSON, with one polygon of random length."""
    left, top = generator.random(2) * (500, 340)
    side = generator.random(2) * 120 + 10
    num_points = 3 + int(generator.exponential(21))
    points = np.round((left, top) + generator.random((num_points, 2)) * side, 2)
    low, high = points.min(axis=0), points.max(axis=0)
    entry = {
        "segmentation": [points.ravel().tolist()],
        "area": round(float((high - low).prod()) * 0.6, 5),
        "iscrowd": 0,
        "image_id": image,
        "bbox": np.round([*low, *(high - low)], 2).tolist(),
        "category_id": int(generator.integers(NUM_CATEGORIES)) + 1,
        "id": number,
    }
    return json.dumps(entry)


def read(options: Read) -> None:
    load = LOADERS[options.by](options)  # imports
    process = psutil.Process()
    before = process.memory_info()
    memory, shared = before.rss, getattr(before, "shared", 0)
    seconds = time.process_time()
    content = load()
    seconds = time.process_time() - seconds
    after = process.memory_info()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - memory
    print(
        json.dumps(
            {
                "CPU": seconds,
                "peak": peak,
                "kept": after.rss - memory,
                "shared": getattr(after, "shared", 0) - shared,
                "images": len(getattr(content, "imgs", content)),
            }
        )
    )


def _pycocotools(options: Read) -> Any:
    from pycocotools.coco import COCO

    return lambda: COCO(str(options.file))


def _groupdetr(options: Read) -> Any:
    from groupdetr.data.coco import read_split

    return lambda: read_split(options.file, options.file.parent, "train", options.masks)


def _from_cache(options: Read) -> Any:
    from groupdetr.data.coco import read_split

    file = options.file
    return lambda: read_split(file, file.parent, "train", options.masks, cache=True)


LOADERS = {
    "pycocotools": _pycocotools,
    "groupdetr": _groupdetr,
    "from the cache": _from_cache,
}


def compare(options: Compare) -> None:
    """Compare the ways to read the file of the options, or one that is drawn."""
    if options.quick:
        options = replace(options, images=min(options.images, QUICK_IMAGES), rounds=1)
    if options.file is not None:
        compare_readers(options, options.file)
        return
    with TemporaryDirectory() as folder:
        file = Path(folder, "coco.json")
        draw(Draw(file, options.images))
        compare_readers(options, file)


def compare_readers(options: Compare, file: Path) -> None:
    here = Path(__file__).resolve().parent.parent
    variants = {"pycocotools": ("pycocotools", here)}
    if options.before is not None:
        variants["before"] = ("groupdetr", options.before.resolve())
    variants["groupdetr"] = ("groupdetr", here)
    variants["groupdetr, from the cache"] = ("from the cache", here)
    rounds: list[dict[str, dict[str, float]]] = []
    with TemporaryDirectory() as cache:
        environment = {**os.environ, "HF_HOME": cache, "OMP_NUM_THREADS": "1"}
        first = _in_new_process(
            options, file, "from the cache", here, environment
        )  # writes the cache
        for number in range(options.rounds):
            results = {}
            for name in random.Random(number).sample(list(variants), len(variants)):
                results[name] = _in_new_process(options, file, *variants[name], environment)
            rounds.append(results)
    rows = {}
    for name in variants:
        ratios = [of["pycocotools"]["CPU"] / of[name]["CPU"] for of in rounds]
        rows[name] = {
            "CPU, s": statistics.median(of[name]["CPU"] for of in rounds),
            "speed-up": statistics.median(ratios),
        }
        for column in ("peak", "kept", "shared"):
            rows[name][f"{column}, MB"] = statistics.median(of[name][column] for of in rounds) / 1e6
    print(f"reading and writing the cache: {first['CPU']:.2f} s CPU")
    import measure

    measure.show(options, rows, options.out)


def _in_new_process(
    options: Compare, file: Path, by: str, checkout: Path, environment: dict[str, str]
) -> dict[str, float]:
    """Return what `read` prints, with the library of a checkout."""
    command = [sys.executable, __file__, "read", str(file), "--by", by]
    command += ["--masks"] if options.masks else []
    environment = {**environment, "PYTHONPATH": str(checkout)}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return result


Command = (
    Annotated[Draw, tyro.conf.subcommand("draw")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Read, tyro.conf.subcommand("read")]
)

if __name__ == "__main__":
    command = tyro.cli(Command)  # type: ignore[arg-type]
    if isinstance(command, Draw):
        draw(command)
    elif isinstance(command, Compare):
        compare(command)
    else:
        read(command)
