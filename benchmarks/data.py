"""What loading costs, against the usual form: Pillow, torchvision.transforms.v2 on Pillow's pictures, floats, padding.

    python benchmarks/data.py DATA [--pictures 50] [--rounds 7] [--batch 2] [--workers 2]

DATA is a data set of JPEGs as ``groupdetr train`` takes it. Every variant has the same pictures with the same draws;
times are a picture's. ``difference``: the most by which a pixel of augmented pictures differs from the
usual form's, of 255. ``usual on bytes`` is v2 on the bytes that we decode, never made floats. Decoders that are not
installed are left out.

The loaders run as a training would have them, up to a copy of each batch as pinning makes it: times of the workers, of
the process that trains, and by the clock. The usual form hands over floats, and stacks them padded; ours hands over
bytes, which are normalised on the device.
"""

from __future__ import annotations

import resource
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from typing import Any

import measure
import numpy as np
import torch
import tyro
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from usual_loading import OnTensors, Usual, usual_loader

from groupdetr.data import batch, images, transforms
from groupdetr.data.batch import (
    DEVIATION,
    MEAN,
    Draw,
    Pictures,
    Stream,
    channels_first,
    collate,
    training_loader,
)
from groupdetr.data.formats import load
from groupdetr.data.images import load_pixels
from groupdetr.data.records import Record

Decoder = Callable[[Record], np.ndarray]


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
    out: Path | None = None  # JSON


# decoders


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

    return cv2.imdecode(
        np.fromfile(record.path, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    )


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
        except (
            ImportError,
            RuntimeError,
        ):  # torchcodec raises the latter if it was built for another torch
            continue
        found[decoder.__name__.replace("_", " ")] = decoder
    return found


# samples


class Decoded(Pictures):
    """Ours, with another decoder."""

    def __init__(self, decoder: Decoder, *args: Any) -> None:
        super().__init__(*args)
        self.decoder = decoder

    def decoded(self, index: int) -> Tensor:
        return channels_first(self.decoder(self.records[index]))


def samplers(
    records: Sequence[Record], known: dict[str, Decoder], options: Options
) -> dict[str, Dataset[Any]]:
    recipe = (records, transforms.training(options.imgsz), options.seed)
    others = {
        f"ours by {name}": known[name]
        for name in ("torchvision", "torchcodec", "opencv")
        if name in known
    }
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


# parts of ours


def parts(pictures: Pictures, draws: Sequence[Draw], size: int) -> measure.Times:
    """Seconds a picture, of one pass in batches of ``size``."""
    spent = dict.fromkeys(("decode", "augment", "the rest", "collate"), 0.0)

    def clocked(name: str, work: Callable[..., Any], *args: Any) -> Any:
        start = measure.clock()
        done = work(*args)
        spent[name] += measure.clock() - start
        return done

    inner = Pictures(
        pictures.records, partial(clocked, "augment", pictures.transform), pictures.seed
    )
    original, batch.load_pixels = batch.load_pixels, partial(clocked, "decode", load_pixels)
    for at in range(0, len(draws), size):
        samples = [clocked("the rest", inner.__getitem__, draw) for draw in draws[at : at + size]]
        clocked("collate", collate, samples)
    batch.load_pixels = original
    spent["the rest"] -= spent["decode"] + spent["augment"]
    return {
        name: seconds / len(draws)
        for name, seconds in {**spent, "all": sum(spent.values())}.items()
    }


# loaders


def spent(who: int) -> float:
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def run(batches: Iterable[Any]) -> measure.Times:
    """Seconds: of the workers, of this process, of both, and by the clock."""
    children = partial(spent, resource.RUSAGE_CHILDREN)
    clocks: list[Callable[[], float]] = [children, time.process_time, time.perf_counter]
    before = [clock() for clock in clocks]
    for piece in batches:
        (piece[0] if isinstance(piece, tuple) else piece).pixels.clone()  # as into pinned memory
    workers, main, clock = (clock() - start for clock, start in zip(clocks, before))
    return {"workers": workers, "main": main, "clock": clock, "all": workers + main}


def loaders(usual: Usual, ours: Pictures, options: Options) -> dict[str, dict[str, float]]:
    """All pictures four times over, so that the start of the workers counts little."""
    steps = 4 * len(usual) // options.batch

    def loading(
        make: Callable[..., Iterable[Any]], pictures: Dataset[Any]
    ) -> Callable[[], measure.Times]:
        seeds = count()
        return lambda: run(
            make(
                pictures, Stream(len(usual), options.batch, next(seeds), 0, steps), options.workers
            )
        )

    runs = {"usual": loading(usual_loader, usual), "ours": loading(training_loader, ours)}
    times, number = measure.interleaved(runs, options.rounds), steps * options.batch
    return {
        name: {
            **{
                f"{part}, ms": times.ms(name, part) / number
                for part in ("all", "workers", "main", "clock")
            },
            "speed-up": times.speed_up(name, over="usual"),
            "speed-up by the clock": times.speed_up(name, "usual", "clock"),
            "pictures a second": 1000 * number / times.ms(name, "clock"),
        }
        for name in runs
    }


# -----------------------------------------------------------------------------------------------------------------


def compared(
    works: Mapping[str, Callable[[Draw], Any]], pictures: int, rounds: int
) -> dict[str, dict[str, float]]:
    """Milliseconds a picture, and the speed-up over the first. A round is an epoch, the same for all."""

    def passing(work: Callable[[Draw], Any]) -> Callable[[], measure.Times]:
        epochs = count()
        return measure.clocked(lambda: [*map(work, every(next(epochs), pictures))])

    first = next(iter(works))
    times = measure.interleaved({name: passing(work) for name, work in works.items()}, rounds)
    return {
        name: {"all, ms": times.ms(name) / pictures, "speed-up": times.speed_up(name, over=first)}
        for name in works
    }


def every(epoch: int, pictures: int) -> list[Draw]:
    return [Draw(epoch, index) for index in range(pictures)]


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
    warnings.simplefilter("ignore")  # torchvision's about its decoder
    records = load(options.data).splits[options.split].records[: options.pictures]
    known = decoders(records[0])
    sets: dict[str, Any] = samplers(records, known, options)

    decoding = {name: partial(decoded, decoder, records) for name, decoder in known.items()}
    decode = compared(decoding, len(records), options.rounds)
    sample = compared(
        {name: pictures.__getitem__ for name, pictures in sets.items()},
        len(records),
        options.rounds,
    )
    draws = every(0, len(records))
    for name in sets.keys() - {"usual"}:
        sample[name]["difference"] = max(
            difference(sets["usual"][d][0], sets[name][d][0]) for d in draws
        )
    ours = measure.interleaved(
        {"ours": partial(parts, sets["ours"], draws, options.batch)}, options.rounds
    )
    rows = {
        **{f"decode, {name}": about for name, about in decode.items()},
        **{f"decode and augment, {name}": about for name, about in sample.items()},
        **{f"of ours, {part}": {"all, ms": ours.ms("ours", part)} for part in ours.parts("ours")},
        **{
            f"loader, {name}": about
            for name, about in loaders(sets["usual"], sets["ours"], options).items()
        },
    }
    print(f"versions besides: {versions()}")
    measure.show(options, rows, options.out)


def decoded(decoder: Decoder, records: Sequence[Record], draw: Draw) -> np.ndarray:
    return decoder(records[draw.index])


if __name__ == "__main__":
    main(tyro.cli(Options))
