"""One forward pass with all groups over the validation images: detections, and matched queries.

Inference runs one group. Here all K groups run, and each is evaluated as a detector of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from groupdetr.console.progress import CountProgress
from groupdetr.criterion.criterion import SetCriterion
from groupdetr.engine.inference import (
    OnProgress,
    eval_mode,
    map_dataset,
    run_inference,
    use_group,
)
from groupdetr.engine.matching_instability import matched_objects
from groupdetr.engine.task import Batch, DetectionsT, Task
from groupdetr.groups import groups_are_separate
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.structures.outputs import Outputs
from groupdetr.structures.predictions import Predictions

ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class ImageGroups(Generic[DetectionsT]):
    """What the K groups of N queries detect in one image."""

    detections: list[DetectionsT]  # [K] all detections of each group
    # [K,N] index of the object that each query is matched to, by the matching of the training in
    # the last decoder layer; -1 for none
    matched: NDArray[np.int16]
    scores: NDArray[np.float32]  # [K,N] the highest score of each query over all classes
    # [K,N,2] x, y in [0,1] of the reference point of each query before the first decoder layer;
    # the centre of its predicted box if the queries have no reference points
    points: NDArray[np.float32]


@dataclass(frozen=True)
class GroupPass(Generic[DetectionsT]):
    """Runs all groups of a detector over the validation images of a task, or some of them.

    The groups must not attend to each other: then a group detects the same as it does alone. K is
    the number of ``groups_to_run``, in rising order; None: all. ``on_progress`` as in
    `groupdetr.engine.inference.map_dataset`.
    """

    model: DetectionTransformer
    task: Task[DetectionsT]
    accelerator: Accelerator
    groups_to_run: tuple[int, ...] | None = None

    def detect(
        self, batch_size: int, workers: int, on_progress: OnProgress | None = None
    ) -> list[list[DetectionsT]]:
        """Return the detections of each of the K groups in every validation image, in order."""

        def detections(outputs: Outputs, batch: Batch) -> list[list[DetectionsT]]:
            return self.detections(outputs.final_of_groups, batch)

        return self._run(detections, batch_size, workers, on_progress)

    def detect_and_match(
        self,
        criterion: SetCriterion,
        batch_size: int,
        workers: int,
        on_progress: OnProgress | None = None,
    ) -> list[ImageGroups[DetectionsT]]:
        """Return what the groups detect in every validation image, and what their queries match.

        ``criterion`` is that of the training. It matches the queries to the objects.
        """

        def groups(outputs: Outputs, batch: Batch) -> list[ImageGroups[DetectionsT]]:
            return self.groups(criterion, outputs, batch)

        return self._run(groups, batch_size, workers, on_progress)

    def _run(
        self,
        evaluate: Callable[[Outputs, Batch], Sequence[ResultT]],
        batch_size: int,
        workers: int,
        on_progress: OnProgress | None,
    ) -> list[ResultT]:
        """Return what ``evaluate`` returns for each image, given the outputs of all groups."""

        # It may be another GPU than that of the accelerator.
        device = next(self.model.parameters()).device

        def predict_batch(batch: Batch) -> Sequence[ResultT]:
            with self.accelerator.autocast():
                outputs = self.model(batch.images(device))
            return evaluate(outputs, batch)

        with eval_mode(self.model), use_group(self.model, self.groups_to_run):
            return map_dataset(
                predict_batch, self.task, self.accelerator, batch_size, workers, on_progress
            )

    def detections(self, final: Predictions, batch: Batch) -> list[list[DetectionsT]]:
        """Return the detections of each group in each image of a batch.

        ``final`` [B,K,N,.] are the predictions of the last layer.
        """
        by_group = []
        for group in range(final.logits.shape[1]):
            by_group.append(self.task.postprocess_val(final[:, group], batch.indices))
        return [[of_group[index] for of_group in by_group] for index in range(len(batch.indices))]

    def groups(
        self, criterion: SetCriterion, outputs: Outputs, batch: Batch
    ) -> list[ImageGroups[DetectionsT]]:
        """Return what the groups detect and match in each image of a batch."""
        final = outputs.final_of_groups  # [B,K,N,.]
        detections = self.detections(final, batch)
        matched = matched_objects(criterion, final, batch.targets)
        logits = final.logits.float()
        if criterion.has_no_object:
            scores = logits.softmax(-1)[..., :-1].amax(-1)
        else:
            scores = logits.sigmoid().amax(-1)
        points = query_points(outputs, final)
        images = []
        for index in range(len(batch.indices)):
            images.append(
                ImageGroups(
                    detections=detections[index],
                    matched=matched[index],
                    scores=scores[index].cpu().numpy(),
                    points=points[index].cpu().numpy(),
                )
            )
        return images


def detect_groups_alone(
    model: DetectionTransformer,
    task: Task[DetectionsT],
    accelerator: Accelerator,
    groups: Sequence[int],
    batch_size: int,
    workers: int,
    label: str,
) -> list[list[DetectionsT]]:
    """Return what each of these groups detects alone in every validation image, group by group.

    ``groups`` are numbers in rising order, and ``label`` is that of the progress. Groups that do
    not attend to each other run in one pass, so backbone and encoder run once for all of them.
    Others run one after another.
    """
    if groups_are_separate(model.recipe.group_attention):
        group_pass = GroupPass(model, task, accelerator, tuple(groups))
        with CountProgress(label) as progress:
            images = group_pass.detect(batch_size, workers, progress)
        return [[image[index] for image in images] for index in range(len(groups))]
    by_group = []
    for group in groups:
        with use_group(model, group), CountProgress(label) as progress:
            by_group.append(run_inference(model, task, accelerator, batch_size, workers, progress))
    return by_group


def query_points(outputs: Outputs, final: Predictions) -> Tensor:
    """Return the reference points of the matching queries, [B,K,N,2] float32, x, y in [0,1].

    They are the centres of the predicted boxes if the queries have no reference points.
    """
    queries = outputs.queries
    if queries is None or queries.reference.shape[-1] < 2:
        return final.to_boxes()[..., :2].float()
    points = queries.reference[:, :, queries.num_denoising :, :2].float()
    return points.expand(len(final.logits), -1, -1, -1)
