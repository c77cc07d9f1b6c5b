"""One pass over the validation pictures for two questions: what is found, and which query is matched to what."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from accelerate import Accelerator
from torch import Tensor, from_numpy

from groupdetr.data.batch import Batch
from groupdetr.engine.inference import Tick, evaluating, of_all, running
from groupdetr.engine.task import Compared, Task
from groupdetr.evaluation.instability import instability, objects_of_queries, stacked
from groupdetr.groups import separately
from groupdetr.structures.aux_outputs import Stages
from groupdetr.structures.outputs import Outputs
from groupdetr.structures.predictions import Predictions
from groupdetr.structures.targets import Objects


@dataclass
class Examination:
    """Of a detector. In the first ``measured`` val pictures all K groups run side by side, in others the one that
    answers; the answer is the same.

    Unless groups attend to each other (Table 7 c): there it is the answering group alone that can be measured.
    """

    model: Any
    criterion: Compared
    task: Task
    accelerator: Accelerator
    measured: int

    def __post_init__(self) -> None:
        self.group: int | None = self.model.queries.inference_group  # that answers, None for all
        self.all_groups = (
            self.group is None or self.model.recipe.compete is separately
        )  # are they measured?

    def run(
        self, batch: int, workers: int, tick: Tick | None = None
    ) -> tuple[list[Any], Tensor | None]:
        """What is found in every val picture, and the object of every query [I,K,N], -1 for none."""
        with evaluating(self.model):
            said = of_all(self.ask, self.task, self.accelerator, batch, workers, tick)
        objects = [objects for _, objects in said[: self.measured]]
        return [found for found, _ in said], from_numpy(stacked(objects)) if objects else None

    def ask(self, pictures: Batch) -> list[tuple[Any, np.ndarray | None]]:
        """What is found, and the object of every query [K,N] where it is measured."""
        measured = sum(
            index < self.measured for index in pictures.indices
        )  # the first of the batch
        group = None if measured and self.all_groups else self.group
        with running(self.model, group), self.accelerator.autocast():
            outputs = self.model(pictures.images(self.accelerator.device))
        answer = outputs.answer if group == self.group else outputs.layers[-1][:, self.group]
        objects = [*self.objects(outputs, pictures)] if measured else []
        unmeasured = [None] * (len(pictures.indices) - measured)
        return list(
            zip(self.task.postprocess(answer, pictures.indices), [*objects[:measured], *unmeasured])
        )

    def objects(self, outputs: Outputs, pictures: Batch) -> np.ndarray:
        """Of every query, as the criterion matches the last layer: [B,K,N]."""
        last = Stages(
            (f"layer{len(outputs.layers) - 1} in validation",),
            Predictions.stack(outputs.layers[-1:]),
        )
        targets = [target.to(self.accelerator.device) for target in pictures.targets]
        assignment = self.criterion.assign(last, Objects.from_targets(targets))
        return objects_of_queries(assignment, last.predictions.logits.shape[1:4])

    def instability(self, now: Tensor | None, before: Tensor | None) -> dict[str, float]:
        """Of the group that answers, and the mean of all groups; nan where undefined."""
        if now is None:
            return {"instability": math.nan, "instability_groups": math.nan}
        groups = instability(now.numpy(), None if before is None else before.numpy())
        primary, mean = (
            (groups[self.group or 0], groups.mean()) if self.all_groups else (groups[0], math.nan)
        )
        return {"instability": float(primary), "instability_groups": float(mean)}
