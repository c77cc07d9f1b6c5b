"""What loading of images costs, against the usual form.

    python benchmarks/data.py DATA [--images 50] [--rounds 7] [--batch 2] [--workers 2]

The usual form is Pillow, torchvision.transforms.v2 on Pillow's images, floats and padding. DATA is
a dataset of JPEGs, as ``groupdetr train`` takes it. All variants load the same images with the
same random draws; times are per image. ``difference`` is the largest difference of a pixel of the
augmented images from the usual form, in levels of 255. ``usual on bytes`` applies v2 to the bytes
that our decoder returns, which never become floats. Decoders that are not installed are left out.

The loaders run as in a training, including a copy of each batch, as pinning would make it. The
times are those of the workers, of the training process, and of the wall clock. The usual form
sends padded batches of floats; ours sends bytes, which are normalised on the device.
"""

from __future__ import annotations

import resource
import sys
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
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from usual_loading import UsualDataset, UsualDatasetOnBytes, usual_loader

from groupdetr.data import dataset, image_decoding, transforms
from groupdetr.data.batch import collate
from groupdetr.data.dataset import DetectionDataset, SampleIndex, channels_first
from groupdetr.data.image_decoding import load_pixels
from groupdetr.data.layouts import load
from groupdetr.data.loader import StepBatchSampler, training_loader
from groupdetr.data.records import Record
from groupdetr.errors import GroupDETRError
from groupdetr.structures.images import IMAGENET_MEAN, IMAGENET_STD

Pixels = NDArray[np.uint8]  # [H,W,3]
Decoder = Callable[[Record], Pixels]


@dataclass
class Options:
    data: tyro.conf.Positional[Path]
    split: str = "train"
    imgsz: int = 800
    images: int = 50
    rounds: int = 7
    batch: int = 2
    workers: int = 2
    device: str = "cpu"  # to which the loaders copy every batch
    seed: int = 0
    quick: bool = False  # fewer images and rounds
    out: Path | None = None  # JSON


QUICK = {"images": 12, "rounds": 2}


# Decoders


def pillow(record: Record) -> Pixels:
    with Image.open(record.path) as image:
        return np.array(image.convert("RGB"))


def torchvision(record: Record) -> Pixels:
    from torchvision.io import ImageReadMode, decode_jpeg, read_file

    image = decode_jpeg(read_file(str(record.path)), ImageReadMode.RGB)
    return image.permute(1, 2, 0).numpy()


def torchcodec(record: Record) -> Pixels:
    from torchcodec.decoders import decode_jpeg  # type: ignore[import-not-found]

    data = torch.frombuffer(bytearray(record.path.read_bytes()), dtype=torch.uint8)
    return decode_jpeg(data).permute(1, 2, 0).numpy()


def simplejpeg(record: Record) -> Pixels:
    from simplejpeg import decode_jpeg

    return decode_jpeg(record.path.read_bytes(), strict=True)


def opencv(record: Record) -> Pixels:
    import cv2  # type: ignore[import-not-found]

    data = np.fromfile(record.path, np.uint8)
    return cv2.imdecode(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)


def ours(record: Record) -> Pixels:
    return load_pixels(record.path, (record.width, record.height))


def ours_by_pillow(record: Record) -> Pixels:
    """Our decoder as it works where simplejpeg is not installed."""
    decode_jpeg = image_decoding.decode_jpeg
    image_decoding.decode_jpeg = None
    try:
        return ours(record)
    finally:
        image_decoding.decode_jpeg = decode_jpeg


def installed_decoders(record: Record) -> dict[str, Decoder]:
    """Return the decoders that are installed and can decode ``record``, by name."""
    decoders: dict[str, Decoder] = {}
    for decoder in (pillow, torchvision, torchcodec, simplejpeg, opencv, ours, ours_by_pillow):
        try:
            decoder(record)
        except (ImportError, RuntimeError):
            # torchcodec raises RuntimeError if it was built for another version of torch.
            continue
        decoders[decoder.__name__.replace("_", " ")] = decoder
    return decoders


# Datasets


class DatasetWithDecoder(DetectionDataset):
    """Our dataset with another decoder."""

    def __init__(
        self,
        decoder: Decoder,
        records: Sequence[Record],
        transform: transforms.Transform,
        seed: int,
    ) -> None:
        super().__init__(records, transform, seed)
        self.decoder = decoder

    def decode(self, index: int) -> Tensor:
        return channels_first(self.decoder(self.records[index]))


def build_datasets(
    records: Sequence[Record], decoders: dict[str, Decoder], options: Options
) -> dict[str, Dataset[Any]]:
    """Return the datasets to compare, by name. The usual form is the first."""
    transform, seed = transforms.detr_transform(options.imgsz), options.seed
    named: dict[str, Dataset[Any]] = {
        "usual": UsualDataset(records, options.imgsz, seed),
        "usual on bytes": UsualDatasetOnBytes(records, options.imgsz, seed),
        "ours": DetectionDataset(records, transform, seed),
        "ours by pillow": DatasetWithDecoder(ours_by_pillow, records, transform, seed),
    }
    for name in ("torchvision", "torchcodec", "opencv"):
        if name in decoders:
            named[f"ours by {name}"] = DatasetWithDecoder(decoders[name], records, transform, seed)
    # The cache is larger than all images together.
    named["ours, image kept"] = DetectionDataset(records, transform, seed, cache_bytes=1 << 40)
    return named


def max_difference(usual: Tensor, image: Tensor) -> float:
    """Return the largest difference of two images, in levels of 255.

    ``usual`` is normalised floats, and ``image`` is bytes.
    """
    mean = torch.tensor(IMAGENET_MEAN).view(3, 1, 1)
    std = torch.tensor(IMAGENET_STD).view(3, 1, 1)
    return float(((usual * std + mean) * 255 - image).abs().max().round())


# Comparisons


def samples_of_epoch(epoch: int, num_images: int) -> list[SampleIndex]:
    return [SampleIndex(epoch, index) for index in range(num_images)]


def compare(
    works: Mapping[str, Callable[[SampleIndex], object]], num_images: int, rounds: int
) -> dict[str, dict[str, float]]:
    """Return for each variant the time per image and the speed-up over the first variant.

    ``works`` process one sample each. Every round is an epoch of all images, with the same samples
    for all variants.
    """

    def timed_epochs(work: Callable[[SampleIndex], object]) -> measure.TimedRun:
        epochs = count()

        def run_epoch() -> None:
            for sample_index in samples_of_epoch(next(epochs), num_images):
                work(sample_index)

        return measure.timed(run_epoch)

    runs = {name: timed_epochs(work) for name, work in works.items()}
    timings = measure.time_interleaved(runs, rounds)
    first = next(iter(works))
    rows = {}
    for name in works:
        rows[name] = {
            "all, ms": timings.ms(name) / num_images,
            "speed-up": timings.speed_up(name, over=first),
        }
    return rows


def decode_sample(decoder: Decoder, records: Sequence[Record], sample: SampleIndex) -> Pixels:
    return decoder(records[sample.index])


def time_parts(
    original: DetectionDataset, samples: Sequence[SampleIndex], batch: int
) -> measure.Times:
    """Return the seconds per image of each part of our loading, in batches of ``batch`` images."""
    seconds = dict.fromkeys(("decode", "augment", "the rest", "collate"), 0.0)

    def call_timed(part: str, function: Callable[..., Any], *args: Any) -> Any:
        start = measure.clock()
        result = function(*args)
        seconds[part] += measure.clock() - start
        return result

    transform = partial(call_timed, "augment", original.transform)
    timed_dataset = DetectionDataset(original.records, transform, original.seed)
    # The dataset decodes by this function.
    dataset.load_pixels = partial(call_timed, "decode", load_pixels)
    for first in range(0, len(samples), batch):
        loaded = []
        for sample in samples[first : first + batch]:
            loaded.append(call_timed("the rest", timed_dataset.__getitem__, sample))
        call_timed("collate", collate, loaded)
    dataset.load_pixels = load_pixels
    # The whole call of the dataset was timed, so its two parts are subtracted.
    seconds["the rest"] -= seconds["decode"] + seconds["augment"]
    times = {part: value / len(samples) for part, value in seconds.items()}
    times["all"] = sum(seconds.values()) / len(samples)
    return times


# Loaders


def worker_seconds() -> float:
    """Return the CPU time of all child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run_loader(batches: Iterable[Any], device: str) -> measure.Times:
    """Load all batches, and return the seconds of each process.

    "workers" and "main" are the process times of the workers and of this process, "all" is their
    sum, and "clock" is wall time.
    """
    workers_start = worker_seconds()
    main_start = time.process_time()
    clock_start = time.perf_counter()
    for batch in batches:
        batch_images = batch[0] if isinstance(batch, tuple) else batch
        batch_images.pixels.to(device, copy=True)  # on a CPU, a copy as into pinned memory
    workers = worker_seconds() - workers_start
    main_process = time.process_time() - main_start
    clock = time.perf_counter() - clock_start
    return {"workers": workers, "main": main_process, "clock": clock, "all": workers + main_process}


def compare_loaders(
    usual: UsualDataset, our_dataset: DetectionDataset, options: Options
) -> dict[str, dict[str, float]]:
    """Return a row for each loader.

    A round loads all images four times, so that the start of the workers counts little.
    """
    steps = 4 * len(usual) // options.batch

    def timed_loads(
        make_loader: Callable[..., Iterable[Any]], loaded_dataset: Dataset[Any]
    ) -> measure.TimedRun:
        seeds = count()

        def run() -> measure.Times:
            sampler = StepBatchSampler(len(usual), options.batch, next(seeds), 0, steps)
            batches = make_loader(loaded_dataset, sampler, options.workers)
            return run_loader(batches, options.device)

        return run

    runs = {
        "usual": timed_loads(usual_loader, usual),
        "ours": timed_loads(training_loader, our_dataset),
    }
    timings = measure.time_interleaved(runs, options.rounds)
    num_images = steps * options.batch
    rows = {}
    for name in runs:
        row = {}
        for part in ("all", "workers", "main", "clock"):
            row[f"{part}, ms"] = timings.ms(name, part) / num_images
        row["speed-up"] = timings.speed_up(name, over="usual")
        row["speed-up by the clock"] = timings.speed_up(name, "usual", "clock")
        row["images a second"] = 1000 * num_images / timings.ms(name, "clock")
        rows[name] = row
    return rows


def further_versions() -> dict[str, str]:
    """Return the versions of decoders that `environment` does not list."""
    versions = {}
    for name in ("torchcodec", "opencv-python-headless"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def read_records(options: Options) -> Sequence[Record]:
    """Return the first images of the split. The program ends with a message if it has none."""
    try:
        splits = load(options.data).splits
    except GroupDETRError as error:
        sys.exit(f"{error.what}\n{error.where}\ngroupdetr check DATA lists what is wrong with it")
    if options.split not in splits:
        sys.exit(
            f"there is no split {options.split!r}\n{options.data}\nsplits: {', '.join(splits)}"
        )
    return splits[options.split].records[: options.images]


def main(options: Options) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # torchvision warns about its decoder
    records = read_records(options)
    decoders = installed_decoders(records[0])
    datasets: dict[str, Any] = build_datasets(records, decoders, options)
    rows: dict[str, dict[str, float]] = {}

    decodes = {name: partial(decode_sample, decoder, records) for name, decoder in decoders.items()}
    for name, row in compare(decodes, len(records), options.rounds).items():
        rows[f"decode, {name}"] = row

    loads = {name: compared.__getitem__ for name, compared in datasets.items()}
    samples = samples_of_epoch(0, len(records))
    for name, row in compare(loads, len(records), options.rounds).items():
        if name != "usual":
            differences = []
            for sample in samples:
                usual_image, image = datasets["usual"][sample][0], datasets[name][sample][0]
                differences.append(max_difference(usual_image, image))
            row["difference"] = max(differences)
        rows[f"decode and augment, {name}"] = row

    parts_run = partial(time_parts, datasets["ours"], samples, options.batch)
    timings = measure.time_interleaved({"ours": parts_run}, options.rounds)
    for part in timings.parts("ours"):
        rows[f"of ours, {part}"] = {"all, ms": timings.ms("ours", part)}

    for name, row in compare_loaders(datasets["usual"], datasets["ours"], options).items():
        rows[f"loader, {name}"] = row
    print(f"further versions: {further_versions()}")
    measure.show(options, rows, options.out)


if __name__ == "__main__":
    main(measure.parse(Options, QUICK))
