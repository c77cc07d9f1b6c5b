"""A detector as a folder of transformers, and its comparison with this library.

The folder has the files that `save_pretrained` of transformers writes: config.json,
model.safetensors, and preprocessor_config.json for the image processor.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from groupdetr.data.batch import normalise
from groupdetr.data.dataset import to_pixels
from groupdetr.data.image_input import ImageInput, to_rgb
from groupdetr.data.transforms import Resize, SquareResize
from groupdetr.errors import ExportMismatchError
from groupdetr.files.writing import write_atomically
from groupdetr.structures.images import IMAGENET_MEAN, IMAGENET_STD, Images
from groupdetr.structures.json_object import JsonObject
from groupdetr.tasks.detection2d.prediction import Detector

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
PROCESSOR = "preprocessor_config.json"
FILES = (CONFIG, WEIGHTS, PROCESSOR)
KEY = "groupdetr"  # of config.json: that this library wrote the folder

# It resizes without antialiasing, unlike an evaluation.
RF_DETR_PROCESSOR = "RfDetrImageProcessor"
# The architecture -> its image processor
PROCESSORS = {
    "ConditionalDetrForObjectDetection": "ConditionalDetrImageProcessor",
    # transformers has no other one for DAB-DETR.
    "DabDetrForObjectDetection": "ConditionalDetrImageProcessor",
    "Mask2FormerForUniversalSegmentation": "Mask2FormerImageProcessor",
    "LwDetrForObjectDetection": "DeformableDetrImageProcessor",
    # Its boxes are those of Deformable DETR.
    "RfDetrForObjectDetection": "DeformableDetrImageProcessor",
    # No other one enlarges its masks.
    "RfDetrForInstanceSegmentation": RF_DETR_PROCESSOR,
}
BILINEAR = 2  # the number of the interpolation in Pillow


@dataclass(frozen=True)
class Differences:
    """The largest absolute differences between transformers and this library."""

    images: int
    logits: float
    boxes: float | None  # of coordinates in [0,1]; None without predicted boxes
    mask_logits: float | None  # relative to the largest one; None without masks
    # Of normalised pixels, for images that both resize to the same size
    pixels: float
    other_sizes: int  # images that both resize to different sizes, which is one pixel or two


def write_folder(folder: Path, config: JsonObject, state: dict[str, Tensor]) -> None:
    """Write config.json and model.safetensors to a folder, which is created."""
    _write_json(folder / CONFIG, config)  # first: it says whose the folder is
    content = save(state, metadata={"format": "pt"})
    write_atomically(folder / WEIGHTS, lambda file: file.write(content))


def write_processor(
    folder: Path, architecture: str, resize: Resize, mean: Sequence[float], std: Sequence[float]
) -> None:
    """Write preprocessor_config.json: images are resized and normalised as in an evaluation.

    ``resize`` is that of the evaluation.
    """
    size: JsonObject
    if isinstance(resize, SquareResize):
        size = {"height": resize.sides[0], "width": resize.sides[0]}
    else:
        size = {"shortest_edge": resize.sizes[0], "longest_edge": resize.longest}
    content: JsonObject = {
        "image_processor_type": PROCESSORS[architecture],
        "do_resize": True,
        "size": size,
        "resample": BILINEAR,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }
    if architecture == "Mask2FormerForUniversalSegmentation":
        # Otherwise images are stretched until their sides are multiples of 32.
        content |= {"size_divisor": 0, "ignore_index": 255, "do_reduce_labels": False}
    else:
        content |= {"do_pad": True, "format": "coco_detection"}
    _write_json(folder / PROCESSOR, content)


def is_own_folder(folder: Path) -> bool:
    """Return whether this library wrote the folder: its config.json says so."""
    try:
        content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and KEY in content and "model_type" in content


def _write_json(path: Path, content: JsonObject) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def has_transformers() -> bool:
    """Return whether transformers is installed, which the comparison needs."""
    return find_spec("transformers") is not None


def compare_with_transformers(
    folder: Path, detector: Detector, images: Sequence[ImageInput], unused: Sequence[str] = ()
) -> Differences:
    """Return how the answers of transformers, with the files of a folder, differ from ours.

    Both compute with 64 bits, so that their differences are not those of rounding. The logits and
    boxes are those of the same pixels. ``unused`` are tensors of the backbone that the folder may
    lack. `ExportMismatchError` if transformers does not take all weights of the folder, or if
    others are missing there.
    """
    theirs, processor = _load(folder, unused)
    ours = copy.deepcopy(detector.model).eval()
    mean, std = torch.tensor(processor.image_mean), torch.tensor(processor.image_std)
    ours_mean, ours_std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    logits, boxes, mask_logits, pixels, other_sizes = [], [], [], [], 0
    for source in images:
        image = to_rgb(source)
        bytes_of_image = to_pixels(image, detector.resize)[None]
        batch = normalise(bytes_of_image, torch.zeros(1, *bytes_of_image.shape[-2:]).bool(), False)
        values = processor(images=[image], return_tensors="pt")["pixel_values"].cpu()
        # What the network sees: the backbone of ours converts the normalisation itself.
        expected = batch.pixels * ours_std.view(-1, 1, 1) + ours_mean.view(-1, 1, 1)
        expected = (expected - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
        if type(processor).__name__ == RF_DETR_PROCESSOR:
            pass  # Its pixels are others.
        elif values.shape == expected.shape:
            pixels.append(float((values - expected).abs().max()))
        else:
            other_sizes += 1
        with torch.no_grad(), double_precision(ours, theirs):
            predictions = ours(Images(batch.pixels.double(), batch.padding, False)).final
            answers = theirs(pixel_values=_padded(expected.double(), ours.backbone.multiple))
        # What Mask2Former answers, which predicts masks alone, has other names.
        logits_name = "logits" if predictions.has_boxes else "class_queries_logits"
        masks_name = "pred_masks" if predictions.has_boxes else "masks_queries_logits"
        logits.append(_difference(predictions.logits, answers[logits_name]))
        if predictions.has_boxes:
            boxes.append(_difference(predictions.boxes, answers.pred_boxes))
        if predictions.has_masks:
            full = predictions.masks.full()
            scale = float(full.abs().max())
            mask_logits.append(_difference(full, answers[masks_name]) / max(scale, 1e-6))
    return Differences(
        images=len(images),
        logits=max(logits),
        boxes=max(boxes, default=None),
        mask_logits=max(mask_logits, default=None),
        pixels=max(pixels, default=float("nan")),
        other_sizes=other_sizes,
    )


def _load(folder: Path, unused: Sequence[str]) -> tuple[Any, Any]:
    """Return the model and the image processor of a folder, as transformers loads them."""

    with _quiet():
        model, info, processor = _from_pretrained(folder)
    for key in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        names = sorted(str(name) for name in info.get(key) or ())
        if key == "missing_keys":
            # Counters of batch norms have no values that are used, either.
            names = [name for name in names if not name.endswith(_endings(unused))]
        if names:
            raise ExportMismatchError(
                f"transformers reports {key.replace('_', ' ')}: {', '.join(names[:10])}",
                str(folder),
                "report it with the versions that groupdetr doctor shows",
            )
    return model.eval(), processor


def _from_pretrained(folder: Path) -> tuple[Any, dict[str, Any], Any]:
    """Return the model, what transformers says about its weights, and the image processor."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    model_class = getattr(transformers, config.architectures[0])
    model, info = model_class.from_pretrained(
        folder, local_files_only=True, output_loading_info=True
    )
    processor = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    return model, info, processor


@contextmanager
def _quiet() -> Iterator[None]:
    """Turn off the warnings and the progress bars of transformers."""
    from transformers.utils import logging

    verbosity, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bars:
            logging.enable_progress_bar()


def _endings(unused: Sequence[str]) -> tuple[str, ...]:
    return (*(f".{name}" for name in unused), ".num_batches_tracked")


def _padded(pixels: Tensor, multiple: int) -> Tensor:
    """Pad images at the right and below until their sides are multiples, as our backbone does."""
    height, width = pixels.shape[-2:]
    return nn.functional.pad(pixels, (0, -width % multiple, 0, -height % multiple))


def _difference(x: Tensor, y: Tensor) -> float:
    """Return the largest absolute difference.

    It is infinite for tensors of different shapes and for NaN, which is no agreement.
    """
    if x.shape != y.shape:
        return float(np.inf)
    return float((x - y).abs().nan_to_num(nan=np.inf, posinf=np.inf).max())


@contextmanager
def double_precision(*models: nn.Module) -> Iterator[None]:
    """Convert models to 64 bits and back. The weights have 32, so nothing is lost."""
    before = torch.get_default_dtype()
    for model in models:
        model.double()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
        for model in models:
            model.float()
