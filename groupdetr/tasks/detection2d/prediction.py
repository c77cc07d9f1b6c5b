"""The users' face: a trained detector that takes pictures and gives boxes or masks with names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from groupdetr.checkpoints import native
from groupdetr.data.batch import normalised, to_pixels
from groupdetr.data.images import load_image
from groupdetr.data.transforms import validation
from groupdetr.engine.accelerator import expect_device
from groupdetr.engine.run_folder import RunFolder
from groupdetr.errors import UsageError
from groupdetr.experiments import experiment, recipe_from
from groupdetr.settings import expect_positive
from groupdetr.structures.detections import Detections, decoded
from groupdetr.structures.images import Images
from groupdetr.visualize.images import draw_found
from groupdetr.weights.loading import load_weights

if TYPE_CHECKING:
    import supervision

Picture = str | Path | Image.Image | np.ndarray | Tensor


@dataclass
class Result:
    """What was found in one picture, by falling score. ``labels`` index ``names``; ``ids`` are the data set's own."""

    image: Image.Image
    detections: Detections
    categories: Sequence[tuple[int | str, str]]  # (original id, name) of every class
    source: str = ""

    @property
    def boxes(self) -> np.ndarray:
        """[D,4] x0, y0, x1, y1 in pixels."""
        return self.detections.boxes.numpy()

    @property
    def masks(self) -> np.ndarray | None:
        """[D,H,W] bool, of the picture's size; None of a detector that says boxes alone. Kept as run lengths,
        ``detections.masks``, and made pixels anew at every look."""
        masks = self.detections.masks
        if masks is None:
            return None
        pixels = np.zeros((len(masks), self.image.height, self.image.width), dtype=bool)
        for mask, runs in zip(pixels, masks):
            mask[:] = decoded(runs)
        return pixels

    @property
    def scores(self) -> np.ndarray:
        return self.detections.scores.numpy()

    @property
    def labels(self) -> np.ndarray:
        return self.detections.labels.numpy()

    @property
    def ids(self) -> list[int | str]:
        """The data set's own category id of every detection."""
        return [self.categories[label][0] for label in self.labels]

    @property
    def names(self) -> list[str]:
        return [self.categories[label][1] for label in self.labels]

    def __len__(self) -> int:
        return len(self.detections)

    def to_coco(self, image_id: int | str | None = None) -> list[dict[str, Any]]:
        """COCO results: original category ids, boxes as [x, y, width, height], masks as compressed run lengths."""
        image_id = self.source if image_id is None else image_id
        rows = zip(
            self.ids,
            self.detections.xywh().tolist(),
            self.scores.tolist(),
            self.detections.segmentations(),
        )
        return [
            {"image_id": image_id, "category_id": key, "bbox": box, "score": score} | mask
            for key, box, score, mask in rows
        ]

    def to_supervision(self) -> supervision.Detections:
        """As ``supervision.Detections``; needs ``pip install 'groupdetr[supervision]'``."""
        try:
            import supervision
        except ImportError as error:
            raise UsageError(
                "supervision is not installed", remedy="pip install 'groupdetr[supervision]'"
            ) from error
        data: dict[str, Any] = {"class_name": np.array(self.names, dtype=str)}
        return supervision.Detections(self.boxes, self.masks, self.scores, self.labels, data=data)

    def draw(self) -> Image.Image:
        """The picture with its boxes and masks."""
        captions = [f"{name} {score:.2f}" for name, score in zip(self.names, self.scores)]
        return draw_found(self.image, self.detections, captions)

    def save(self, path: str | Path) -> None:
        """Write the annotated picture."""
        self.draw().save(path)


class Trained:
    """A run's best weights, or a weights file of this library, built again.

    ``device``: auto, cpu, cuda, mps. ``imgsz``: shortest side the network sees, the run's own by default.
    """

    sees: ClassVar[str | None] = None  # pictures or scenes; None for whichever

    def __init__(self, source: str | Path, device: str = "auto", imgsz: int | None = None) -> None:
        self.path, about = described(source)
        self.recipe = recipe_from(about["recipe"])
        self.experiment = experiment(self.recipe.preset)
        self.task = self.experiment.task
        if self.sees not in (None, self.task.sees):
            what = f"this detector sees {self.task.sees}, not {self.sees}"
            raise UsageError(
                what,
                str(self.path),
                "groupdetr.Detector sees pictures, groupdetr.SceneDetector scenes",
            )
        self.categories = [
            (key, name)
            for key, name in about.get("categories") or _numbered(self.recipe.num_classes)
        ]
        self.imgsz = int(about.get("imgsz", 800)) if imgsz is None else imgsz
        expect_positive(self, "imgsz")
        expect_device(device.partition(":")[0])  # which of several may be said
        self.device = torch.device(
            ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        )
        self.model = self.recipe.build()
        load_weights(self.model, self.path)
        self.model.to(self.device).eval()

    @property
    def names(self) -> list[str]:
        return [name for _, name in self.categories]

    def task_on(self, data: Any) -> Any:
        """What the detector was trained for, on a data set that was read with the masks that its task asks for."""
        return self.task(
            data, replace(self.experiment.settings, imgsz=self.imgsz), self.recipe.num_detections
        )


class Detector(Trained):
    """A detector of objects in pictures, ready to predict: a run's best weights, or a weights file of this library.

    ``device``: auto, cpu, cuda, mps. ``imgsz``: shortest side the network sees, the run's own by default.
    """

    sees: ClassVar[str | None] = "pictures"

    def predict(self, pictures: Picture | Sequence[Picture], score: float = 0.5) -> list[Result]:
        """What is in each picture, with a score of at least ``score``. A picture is a path, a PIL image, an array
        [H,W,3] or [H,W] of bytes, or a tensor [3,H,W] of bytes or of floats in [0,1]."""
        single = isinstance(pictures, str | Path | Image.Image | np.ndarray | Tensor)
        return list(self.stream([pictures] if single else pictures, score))  # type: ignore[list-item, arg-type]

    @torch.inference_mode()
    def stream(self, pictures: Sequence[Picture], score: float = 0.5) -> Iterator[Result]:
        """As `predict`, one picture after the other: each is seen without padding, as it will be used."""
        for picture in pictures:
            image = as_image(picture)
            pixels = to_pixels(image, validation(self.imgsz)).unsqueeze(0).to(self.device)
            images: Images = normalised(
                pixels, torch.zeros_like(pixels[:, 0], dtype=torch.bool), padded=False
            )
            answer = self.model(images).answer
            (found,) = self.task.found(answer, [image.size], self.recipe.num_detections)
            found.boxes = found.boxes.clamp(min=0).minimum(
                torch.tensor(image.size * 2)
            )  # people expect boxes inside
            source = str(picture) if isinstance(picture, str | Path) else ""
            yield Result(image, found.above(score), self.categories, source)


def described(source: str | Path) -> tuple[Path, dict[str, Any]]:
    """The weights file of a run, or the file itself, and what it says of itself."""
    path = Path(source)
    file = RunFolder.existing(path).best if path.is_dir() else path
    _, about = native.read(file)
    if "recipe" not in about:
        remedy = "groupdetr import FILE --out NEW.safetensors"
        raise UsageError("this file does not say which model it is", str(file), remedy)
    return file, about


def task_of(source: str | Path) -> Any:
    """What the detector of a run or a file was trained for."""
    return experiment(described(source)[1]["recipe"]["preset"]).task


def as_image(picture: Picture) -> Image.Image:
    """Any picture as RGB, turned as its EXIF orientation says."""
    if isinstance(picture, str | Path):
        return load_image(Path(picture))
    if isinstance(picture, Image.Image):
        return ImageOps.exif_transpose(picture).convert("RGB")
    if isinstance(picture, Tensor):
        picture = picture.detach().cpu()
        picture = (
            (picture * 255).round().clamp(0, 255).byte() if picture.is_floating_point() else picture
        )
        picture = picture.permute(1, 2, 0).numpy() if picture.ndim == 3 else picture.numpy()
    if picture.dtype != np.uint8 or picture.ndim not in (2, 3):
        raise UsageError(
            f"an array of {picture.dtype} {picture.shape} is not a picture",
            remedy="pass [H,W,3] or [H,W] of uint8",
        )
    return Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture).convert(
        "RGB"
    )


def _numbered(num_classes: int) -> list[tuple[int, str]]:
    return [(i, f"class {i}") for i in range(num_classes)]
