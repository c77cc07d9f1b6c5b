"""The detections of a trained detector in one image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from groupdetr.analysis.group_uncertainty import GroupUncertainty
from groupdetr.errors import UsageError
from groupdetr.structures.detections import Detections, decode_mask
from groupdetr.structures.json_object import JsonObject
from groupdetr.tasks.detection2d.group_detections import GroupDetections
from groupdetr.tasks.detection_result import DetectionResult
from groupdetr.visualize.images import draw_detections, draw_group_boxes

if TYPE_CHECKING:
    import supervision


@dataclass(repr=False)
class Result(DetectionResult):
    """The detections in one image, sorted by decreasing score. A notebook shows them in the image.

    ``labels`` are indices into the classes of the detector, ``ids`` are the category ids of the
    dataset, and ``names`` are the names of the classes.

    >>> result = groupdetr.Detector("runs/mine").predict("photo.jpg", score=0.3)[0]
    >>> for name, score, box in zip(result.names, result.scores, result.boxes):
    ...     print(f"{name} {score:.2f}", box.round())
    >>> result.save("annotated.jpg")
    """

    image: Image.Image  # in RGB, rotated according to its EXIF orientation
    detections: Detections  # their tensors, and the masks as run lengths
    categories: Sequence[tuple[int | str, str]]  # (id in the dataset, name) of every class
    source: str = ""  # the path of the image, if it has one
    best_score: float | None = None  # the highest of all scores, those below the threshold included
    groups: GroupDetections | None = None  # the boxes of all groups, with ``show_groups``
    group_uncertainty: GroupUncertainty | None = None  # with ``uncertainty`` of the detector
    frame: int | None = None  # of a video: the index of the frame, 0 for the first one
    time: float | None = None  # of a video: the seconds since the first frame

    @property
    def source_files(self) -> list[Path]:
        """The file of the original image, if it came from one."""
        return [Path(self.source)] if self.source else []

    @property
    def class_names(self) -> list[str]:
        """The names of all classes of the detector. Labels are indices into it."""
        return [name for _, name in self.categories]

    @property
    def boxes(self) -> NDArray[np.float32]:
        """[D,4] x0, y0, x1, y1 in pixels."""
        boxes: NDArray[np.float32] = self.detections.boxes.numpy()
        return boxes

    @property
    def uncertainty(self) -> NDArray[np.float64] | None:
        """[D] in [0,1]: 1 minus what the groups confirm of each detection.

        That is the mean over all groups of their score times the IoU of their box, and zero for
        groups that do not detect the object. None without ``uncertainty`` of the detector.
        """
        return None if self.group_uncertainty is None else self.group_uncertainty.total

    @property
    def disagreement(self) -> NDArray[np.float64] | None:
        """[D] in [0,1]: the spread of the boxes and scores of the groups, whatever the score is.

        It is 0 if they are equal, and 1 if no other group detects the object. None without
        ``uncertainty`` of the detector.
        """
        return None if self.group_uncertainty is None else self.group_uncertainty.disagreement

    @property
    def captions(self) -> list[str]:
        """The class name and the score of every detection, and its uncertainty if it is known."""
        captions = super().captions
        if self.uncertainty is None:
            return captions
        return [f"{text}, u {value:.2f}" for text, value in zip(captions, self.uncertainty)]

    @property
    def masks(self) -> NDArray[np.bool_] | None:
        """[D,H,W] bool at the size of the image; None if the detector predicts boxes only.

        Masks are stored as run lengths in ``detections.masks``. Every access decodes them again.
        """
        rles = self.detections.masks
        if rles is None:
            return None
        masks = np.zeros((len(rles), self.image.height, self.image.width), dtype=bool)
        for index, rle in enumerate(rles):
            masks[index] = decode_mask(rle)
        return masks

    @property
    def ids(self) -> list[int | str]:
        """The category id of every detection, as in the dataset."""
        return [self.categories[label][0] for label in self.labels]

    def to_coco(self, image_id: int | str | None = None) -> list[JsonObject]:
        """Return COCO results with the category ids of the dataset.

        Boxes are [x, y, width, height], masks are compressed run lengths. Without ``image_id`` the
        path of the image is used; for a frame of a video, its index follows.
        """
        if image_id is None:
            image_id = self.source if self.frame is None else f"{self.source}/{self.frame:06d}"
        rows = zip(
            self.ids,
            self.detections.xywh().tolist(),
            self.scores.tolist(),
            self.detections.segmentations(),
        )
        results: list[JsonObject] = []
        for category_id, box, score, segmentation in rows:
            result: JsonObject = {
                "image_id": image_id,
                "category_id": category_id,
                "bbox": box,
                "score": score,
            }
            if self.group_uncertainty is not None:
                result["uncertainty"] = float(self.group_uncertainty.total[len(results)])
                result["disagreement"] = float(self.group_uncertainty.disagreement[len(results)])
            results.append(result | segmentation)
        return results

    def to_supervision(self) -> supervision.Detections:
        """Return ``supervision.Detections``. It needs ``pip install 'groupdetr[supervision]'``."""
        try:
            import supervision
        except ImportError as error:
            raise UsageError(
                "supervision is not installed", remedy="pip install 'groupdetr[supervision]'"
            ) from error
        return supervision.Detections(
            self.boxes,
            self.masks,
            self.scores,
            self.labels,
            data={"class_name": np.array(self.names, dtype=str)},
        )

    def draw(self) -> Image.Image:
        """Return a copy of the image with its boxes and masks.

        With the boxes of all groups, each group has a colour, which is named below the image.
        """
        if self.groups is not None:
            boxes = self.detections.boxes
            return draw_group_boxes(self.image, boxes, self.captions, self.groups.boxes)
        return draw_detections(self.image, self.detections, self.captions)
