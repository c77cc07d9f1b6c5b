"""What loading costs, against the usual form: Pillow, torchvision.transforms.v2 on Pillow's pictures, floats, padding.

    python benchmarks/data.py DATA [--pictures 50] [--rounds 7] [--batch 2] [--workers 2]

DATA is a data set of JPEGs as ``groupdetr train`` takes it. Each round runs every variant once over the same pictures
with the same draws, in random order, on one thread; figures are medians of process time a picture, and speed-ups
medians of the ratios within rounds. ``difference``: the most by which a pixel of augmented pictures differs from the
usual form's, of 255. ``usual on bytes`` is v2 on the bytes that we decode, never made floats. Decoders that are not
installed are left out.

The loaders run as a training would have them, up to a copy of each batch as pinning makes it: times of the workers, of
the process that trains, and by the clock. The usual form hands over floats, and stacks them padded; ours hands over
bytes, which are normalised on the device.
"""

from __future__ import annotations

import json
import random
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from groupdetr.data import batch, images, transforms
from groupdetr.data.batch import (
    DEVIATION,
    MEAN,
    Draw,
    Pictures,
    Stream,
    channels_first,
    collate,
    one_thread,
    training_loader,
)
from groupdetr.data.formats import load
from groupdetr.data.images import load_pixels
from groupdetr.data.records import Record
from groupdetr.data.transforms import CropBetween, ResizeShortest
from groupdetr.engine.machine import environment
from groupdetr.ops.boxes import xyxy_to_cxcywh
from groupdetr.structures import Images, Target

Decoder = Callable[[Record], np.ndarray]
Results = dict[str, dict[str, float]]


@dataclass
class Options:
    data: tyro.conf.Positional[Path]
    split: str = "train"
    imgsz: int = 800
    pictures: int = 50
    rounds: int = 7
    batch: int = 2
    workers: int = 2
    seed: int = 0


# decoders --------------------------------------------------------------------------------------------------------


def pillow(record: Record) -> np.ndarray:
    with Image.open(record.path) as image:
        return np.array(image.convert("RGB"))


def torchvision(record: Record) -> np.ndarray:
    from torchvision.io import ImageReadMode, decode_jpeg, read_file

    return decode_jpeg(read_file(str(record.path)), ImageReadMode.RGB).permute(1, 2, 0).numpy()


def torchcodec(record: Record) -> np.ndarray:
    from torchcodec.decoders import decode_jpeg  # type: ignore[import-not-found]

    raw = torch.frombuffer(bytearray(record.path.read_bytes()), dtype=torch.uint8)
    return decode_jpeg(raw).permute(1, 2, 0).numpy()


def simplejpeg(record: Record) -> np.ndarray:
    from simplejpeg import decode_jpeg

    return decode_jpeg(record.path.read_bytes(), strict=True)


def opencv(record: Record) -> np.ndarray:
    import cv2  # type: ignore[import-not-found]

    return cv2.imdecode(np.fromfile(record.path, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)


def ours(record: Record) -> np.ndarray:
    return load_pixels(record.path, (record.width, record.height))


def ours_by_pillow(record: Record) -> np.ndarray:
    """As where simplejpeg is not installed."""
    own, images.decode_jpeg = images.decode_jpeg, None
    try:
        return ours(record)
    finally:
        images.decode_jpeg = own


def decoders(sample: Record) -> dict[str, Decoder]:
    """Those that are installed and can open ``sample``."""
    found: dict[str, Decoder] = {}
    for decoder in (pillow, torchvision, torchcodec, simplejpeg, opencv, ours, ours_by_pillow):
        try:
            decoder(sample)
        except (ImportError, RuntimeError):  # torchcodec raises the latter if it was built for another torch
            continue
        found[decoder.__name__.replace("_", " ")] = decoder
    return found


# samples ---------------------------------------------------------------------------------------------------------


class Resize(v2.Transform):
    """By torchvision's machinery, with our rule and draws."""

    def __init__(self, rule: ResizeShortest) -> None:
        super().__init__()
        self.rule = rule

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = v2.query_size(flat_inputs)
        return {"size": self.rule.size(height, width, torch.default_generator)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return self._call_kernel(F.resize, inpt, **params)


class Crop(v2.Transform):
    """As `Resize`."""

    def __init__(self, rule: CropBetween) -> None:
        super().__init__()
        self.rule = rule

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = v2.query_size(flat_inputs)
        return dict(zip(("top", "left", "height", "width"), self.rule.place(height, width, torch.default_generator)))

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return self._call_kernel(F.crop, inpt, **params)


def recipe(imgsz: int) -> v2.Transform:
    """DETR's, as `transforms.training` draws it."""
    flip: Any = transforms.training(imgsz)
    resize, first, crop = Resize(flip.then.then), Resize(flip.then.resize), Crop(flip.then.crop)
    return v2.Compose([v2.RandomHorizontalFlip(), v2.RandomChoice([resize, v2.Compose([first, crop, resize])])])


class Usual(Dataset[tuple[Tensor, Target, int]]):
    """Pillow's picture through v2, then floats, normalised; the draws are ours."""

    def __init__(self, records: Sequence[Record], imgsz: int, seed: int) -> None:
        self.records, self.seed, self.augment = records, seed, recipe(imgsz)
        floats = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, DEVIATION)]
        self.finish: Callable[[Any], Any] = v2.Compose(floats)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, draw: Draw) -> tuple[Tensor, Target, int]:
        torch.manual_seed(int(np.random.SeedSequence((self.seed, draw.epoch, draw.index)).generate_state(1)[0]))
        record = self.records[draw.index]
        corners, labels = record.training()
        size = (record.height, record.width)
        boxes = tv_tensors.BoundingBoxes(torch.from_numpy(corners).float(), format="XYXY", canvas_size=size)
        picture, boxes, known = self.augment(self.picture(record), boxes, torch.from_numpy(labels))
        picture = self.finish(picture)
        kept = (boxes[:, 2:] > boxes[:, :2]).all(1)
        height, width = picture.shape[1:]
        within = xyxy_to_cxcywh(boxes[kept].as_subclass(Tensor))
        target = Target(known[kept], within / torch.tensor([width, height, width, height]))
        return picture.as_subclass(Tensor), target, draw.index

    def picture(self, record: Record) -> Any:
        with Image.open(record.path) as image:
            return image.convert("RGB")


class OnTensors(Usual):
    """v2 on our tensors, bytes to the end."""

    def __init__(self, records: Sequence[Record], imgsz: int, seed: int) -> None:
        super().__init__(records, imgsz, seed)
        self.finish = lambda picture: picture

    def picture(self, record: Record) -> Any:
        return tv_tensors.Image(channels_first(ours(record)))


def usual_collate(samples: Sequence[tuple[Tensor, Target, int]]) -> tuple[Images, list[Target]]:
    """One padded block of floats and its mask."""
    pictures, targets, _ = zip(*samples)
    height, width = (max(picture.shape[axis] for picture in pictures) for axis in (1, 2))
    pixels, padding = torch.zeros(len(pictures), 3, height, width), torch.ones(len(pictures), height, width).bool()
    for place, outside, picture in zip(pixels, padding, pictures):
        place[:, : picture.shape[1], : picture.shape[2]].copy_(picture)
        outside[: picture.shape[1], : picture.shape[2]] = False
    return Images(pixels, padding), list(targets)


class Decoded(Pictures):
    """Ours, with another decoder."""

    def __init__(self, decoder: Decoder, *args: Any) -> None:
        super().__init__(*args)
        self.decoder = decoder

    def decoded(self, index: int) -> Tensor:
        return channels_first(self.decoder(self.records[index]))


def samplers(records: Sequence[Record], known: dict[str, Decoder], options: Options) -> dict[str, Dataset[Any]]:
    recipe = (records, transforms.training(options.imgsz), options.seed)
    others = {f"ours by {name}": known[name] for name in ("torchvision", "torchcodec", "opencv") if name in known}
    others = {"ours by pillow": ours_by_pillow, **others}
    return {
        "usual": Usual(records, options.imgsz, options.seed),
        "usual on bytes": OnTensors(records, options.imgsz, options.seed),
        "ours": Pictures(*recipe),
        **{name: Decoded(decoder, *recipe) for name, decoder in others.items()},
        "ours, picture kept": Pictures(*recipe, 1 << 40),
    }


def difference(usual: Tensor, ours: Tensor) -> float:
    """Levels of 255."""
    mean, deviation = (torch.tensor(x).view(3, 1, 1) for x in (MEAN, DEVIATION))
    return float(((usual * deviation + mean) * 255 - ours).abs().max().round())


# parts of ours ---------------------------------------------------------------------------------------------------


def parts(pictures: Pictures, draws: Sequence[Draw], size: int) -> dict[str, float]:
    """Seconds a picture, of one pass in batches of ``size``."""
    spent = dict.fromkeys(("decode", "augment", "the rest", "collate"), 0.0)

    def clocked(name: str, work: Callable[..., Any], *args: Any) -> Any:
        start = time.process_time()
        done = work(*args)
        spent[name] += time.process_time() - start
        return done

    inner = Pictures(pictures.records, partial(clocked, "augment", pictures.transform), pictures.seed)
    original, batch.load_pixels = batch.load_pixels, partial(clocked, "decode", load_pixels)
    for at in range(0, len(draws), size):
        samples = [clocked("the rest", inner.__getitem__, draw) for draw in draws[at : at + size]]
        clocked("collate", collate, samples)
    batch.load_pixels = original
    spent["the rest"] -= spent["decode"] + spent["augment"]
    return {name: seconds / len(draws) for name, seconds in spent.items()}


# loaders ---------------------------------------------------------------------------------------------------------


def usual_loader(pictures: Usual, stream: Stream, workers: int) -> DataLoader[Any]:
    return DataLoader(
        pictures, batch_sampler=stream, collate_fn=usual_collate, num_workers=workers, worker_init_fn=one_thread
    )


def spent(who: int) -> float:
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def run(batches: Iterable[Any]) -> dict[str, float]:
    """Seconds: of the workers, of this process, and by the clock."""
    children = partial(spent, resource.RUSAGE_CHILDREN)
    clocks: list[Callable[[], float]] = [children, time.process_time, time.perf_counter]
    before = [clock() for clock in clocks]
    for piece in batches:
        (piece[0] if isinstance(piece, tuple) else piece).pixels.clone()  # as into pinned memory
    return {name: clock() - start for name, clock, start in zip(("workers", "main", "clock"), clocks, before)}


def loaders(usual: Usual, ours: Pictures, options: Options) -> Results:
    """Milliseconds a picture, and speed-ups: in the time of all processes, and by the clock. All pictures four times
    over, so that the start of the workers counts little."""
    steps = 4 * len(usual) // options.batch
    rounds: list[Results] = []
    for seed in range(options.rounds):
        stream = Stream(len(usual), options.batch, seed, 0, steps)
        make: dict[str, Callable[[], Iterable[Any]]] = {
            "usual": partial(usual_loader, usual, stream, options.workers),
            "ours": partial(training_loader, ours, stream, options.workers),
        }
        rounds.append({name: run(make[name]()) for name in random.sample(list(make), len(make))})
    found: Results = {}
    for name in ("usual", "ours"):
        ms = 1000 / (steps * options.batch)
        found[name] = {f"{key}_ms": ms * statistics.median(r[name][key] for r in rounds) for key in rounds[0][name]}
        found[name]["pictures_s"] = 1000 / found[name]["clock_ms"]
        found[name]["speedup"] = statistics.median(whole(r["usual"]) / whole(r[name]) for r in rounds)
        found[name]["speedup_clock"] = statistics.median(r["usual"]["clock"] / r[name]["clock"] for r in rounds)
    return found


def whole(seconds: dict[str, float]) -> float:
    return seconds["workers"] + seconds["main"]


# -----------------------------------------------------------------------------------------------------------------


def timed(work: Callable[[int], Any], count: int) -> float:
    start = time.process_time()
    for i in range(count):
        work(i)
    return (time.process_time() - start) / count


def measure(run: Callable[[str, int], float], names: Sequence[str], rounds: int) -> Results:
    """Milliseconds a picture, pictures a second, and the speed-up over the first; one round to warm up."""
    times = [{name: run(name, r) for name in random.sample(names, len(names))} for r in range(rounds + 1)][1:]
    found: Results = {}
    for name in names:
        ms = 1000 * statistics.median(t[name] for t in times)
        found[name] = {"ms": ms, "pictures_s": 1000 / ms}
        found[name]["speedup"] = statistics.median(t[names[0]] / t[name] for t in times)
    return found


def table(results: dict[str, Results]) -> str:
    columns = list(dict.fromkeys(key for variants in results.values() for about in variants.values() for key in about))
    lines = [f"| part | variant | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
    for part, variants in results.items():
        for name, about in variants.items():
            cells = [f"{about[c]:.3g}" if c in about else "" for c in columns]
            lines.append(f"| {part} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def versions() -> dict[str, str]:
    found = {}
    for name in ("torchcodec", "opencv-python-headless"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def main(options: Options) -> None:
    torch.set_num_threads(1)
    random.seed(options.seed)
    warnings.simplefilter("ignore")  # torchvision's about its decoder
    records = load(options.data).splits[options.split].records[: options.pictures]
    results: dict[str, Results] = {}

    known = decoders(records[0])
    results["decode"] = measure(
        lambda name, _: timed(lambda i: known[name](records[i]), len(records)), list(known), options.rounds
    )
    sets = samplers(records, known, options)
    results["decode and augment"] = measure(
        lambda name, r: timed(lambda i: sets[name][Draw(r, i)], len(records)), list(sets), options.rounds
    )
    draws = [Draw(0, i) for i in range(len(records))]
    for name, found in results["decode and augment"].items():
        if name != "usual":
            found["difference"] = max(difference(sets["usual"][d][0], sets[name][d][0]) for d in draws)
    passes = [parts(sets["ours"], draws, options.batch) for _ in range(options.rounds)]  # type: ignore[arg-type]
    results["ours"] = {n: {"ms": 1000 * statistics.median(p[n] for p in passes)} for n in passes[0]}
    results[f"loader, {options.workers} workers"] = loaders(sets["usual"], sets["ours"], options)  # type: ignore[arg-type]
    print(table(results), file=sys.stderr)
    about = {"options": vars(options), "environment": environment(), "versions": versions(), "results": results}
    print(json.dumps(about, indent=1, default=str))


if __name__ == "__main__":
    main(tyro.cli(Options))
