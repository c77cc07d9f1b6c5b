"""One pass over the validation images: detections, and the instability of the matching (Fig. 5)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic

import numpy as np
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, from_numpy

from groupdetr.criterion.criterion import SetCriterion
from groupdetr.engine.inference import eval_mode, map_dataset, use_group
from groupdetr.engine.task import Batch, DetectionsT, Task
from groupdetr.evaluation.instability import instability, objects_of_queries, pad_and_stack
from groupdetr.groups import groups_are_separate
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.structures.outputs import Outputs
from groupdetr.structures.predictions import Predictions
from groupdetr.structures.supervised_predictions import SupervisedPredictions
from groupdetr.structures.targets import Target, TargetBatch


@dataclass
class ValidationPass(Generic[DetectionsT]):
    """Runs a detector over the validation images.

    All K groups run on the first ``measured_images`` images, to measure the matching instability,
    and only the inference group runs on the others. The detections are identical either way, unless
    groups attend to each other (Table 7 c). In that case only the inference group is measured.
    """

    model: DetectionTransformer
    criterion: SetCriterion
    task: Task[DetectionsT]
    accelerator: Accelerator
    measured_images: int
    # Runs the model, if it cannot be called itself because its parameters are sharded.
    predict: Callable[[Any], Outputs] | None = None

    def __post_init__(self) -> None:
        recipe = self.model.recipe
        self.inference_group = recipe.inference_group
        self.measures_all_groups = self.inference_group is None or groups_are_separate(
            recipe.group_attention
        )

    def run(
        self, batch_size: int, workers: int, on_progress: Callable[[int, int], None] | None = None
    ) -> tuple[list[DetectionsT], Tensor | None]:
        """Return the detections of every validation image, and the matched objects.

        The matched objects [I,K,N] of the I measured images are the index of the object of every
        query, -1 for none. They are None if nothing is measured. Of several processes, only the
        main one gets all of this, and the others nothing.
        """
        with eval_mode(self.model):
            results = map_dataset(
                self.predict_batch, self.task, self.accelerator, batch_size, workers, on_progress
            )
        detections = [image_detections for image_detections, _ in results]
        objects = [matched for _, matched in results[: self.measured_images] if matched is not None]
        return detections, from_numpy(pad_and_stack(objects)) if objects else None

    def predict_batch(self, batch: Batch) -> list[tuple[DetectionsT, np.ndarray | None]]:
        """Return for every image its detections and the object of every query, [K,N] or None."""
        # Images come in order, so those that are measured are the first of a batch.
        num_measured = sum(index < self.measured_images for index in batch.indices)
        group = None if num_measured and self.measures_all_groups else self.inference_group
        with use_group(self.model, group), self.accelerator.autocast():
            outputs = (self.predict or self.model)(batch.images(self.accelerator.device))
        if group == self.inference_group:
            final = outputs.final
        else:
            final = outputs.final_of_groups[:, self.inference_group]
        matched: list[np.ndarray | None] = [None] * len(batch.indices)
        if num_measured:
            objects = matched_objects(self.criterion, outputs.final_of_groups, batch.targets)
            matched[:num_measured] = objects[:num_measured]
        return list(zip(self.task.postprocess_val(final, batch.indices), matched))

    def instability(self, matched: Tensor | None, previous: Tensor | None) -> dict[str, float]:
        """Return the instability of the inference group and the mean of all groups.

        They compare the matched objects of two evaluations. They are nan where undefined.
        """
        if matched is None:
            return {"instability": math.nan, "instability_groups": math.nan}
        by_group = instability(matched.numpy(), None if previous is None else previous.numpy())
        if self.measures_all_groups:
            primary = float(by_group[self.inference_group or 0])
            mean = float(by_group.mean())
        else:
            primary = float(by_group[0])
            mean = math.nan
        return {"instability": primary, "instability_groups": mean}


def matched_objects(
    criterion: SetCriterion, final: Predictions, targets: Sequence[Target]
) -> NDArray[np.int16]:
    """Return the index of the object of every query, [B,K,N], -1 for none.

    ``final`` [B,K,N,.] are the predictions of the last layer, which are matched as in training.
    """
    supervised = SupervisedPredictions(("last layer in validation",), Predictions.stack([final]))
    on_device = [target.to(final.logits.device) for target in targets]
    assignment = criterion.assign(supervised, TargetBatch.from_targets(on_device))
    return objects_of_queries(assignment, final.logits.shape[:3])
