"""The evaluation of the validation images during a training, and which weights are the best."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from accelerate.utils import broadcast_object_list

from groupdetr.checkpoints.native import unique_state
from groupdetr.criterion.criterion import SetCriterion
from groupdetr.engine.checkpoint import CheckpointState
from groupdetr.engine.evaluation_files import EvaluationFiles
from groupdetr.engine.main_process import run_on_main
from groupdetr.engine.matching_instability import ValidationPass
from groupdetr.engine.schedule import TrainingSchedule
from groupdetr.engine.sharded_tensors import gather
from groupdetr.engine.task import EvaluationResult
from groupdetr.engine.training_plan import TrainingPlan
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.modeling.group_chunks import ChunkedModelWithLoss, ModelWithLoss
from groupdetr.structures.json_object import JsonObject


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation has found. The main process alone has all of it."""

    metrics: dict[str, float]  # in all processes; the first one decides which is the best
    is_best: bool  # in all processes
    detections: Sequence[Any]  # of the validation images, in the order of the dataset
    result: EvaluationResult | None
    record: JsonObject | None  # of log.jsonl


class Evaluator:
    """Evaluates the validation images, measures the matching instability, and saves the best."""

    def __init__(
        self,
        plan: TrainingPlan,
        criterion: SetCriterion,
        state: CheckpointState,
        schedule: TrainingSchedule,
        network: ModelWithLoss | ChunkedModelWithLoss | None = None,
    ) -> None:
        """``network`` has the evaluated model in it, if the model is sharded."""
        self.plan = plan
        self.predict = None if network is None else network.predict
        self.criterion = criterion
        self.state = state
        self.files = EvaluationFiles(plan, state, schedule)

    def run(self, on_progress: Callable[[int, int], None]) -> Evaluation:
        """Evaluate the current weights, write the files of the evaluation, and return it.

        ``on_progress`` as in `groupdetr.engine.inference.map_dataset`.
        """
        model = self.state.evaluated
        assert isinstance(model, DetectionTransformer)
        plan, progress = self.plan, self.state.progress
        validation_pass = ValidationPass(
            model,
            self.criterion,
            plan.task,
            plan.accelerator,
            plan.settings.instability_images,
            self.predict,
        )
        detections, matched = validation_pass.run(plan.micro_batch_size, plan.workers, on_progress)
        # The main process evaluates, because no other one needs the detections or the result.
        result = run_on_main(lambda: plan.task.evaluate(detections), plan.accelerator)
        metrics: dict[str, float] = {}
        if result is not None:
            metrics = result.stats | validation_pass.instability(matched, self.state.matched)
        (metrics,) = broadcast_object_list([metrics])
        main_metric = next(iter(metrics.values()))
        # An undefined score is below all others. Of equal scores, the later evaluation is the best:
        # its weights were trained for longer.
        score = -1.0 if math.isnan(main_metric) else main_metric
        is_best = score >= progress.best_ap
        # All processes take part in gathering them if they are sharded.
        weights = gather(unique_state(model), keep=plan.is_main_process)
        # The state changes after the files are written. If one of them cannot be written, this
        # evaluation is still due, and is done when the run is resumed.
        record = None if result is None else self.files.write(result, metrics, is_best, weights)
        self.state.matched = matched
        # An undefined score says nothing about the progress.
        if score > progress.best_ap:
            progress.stale = 0
        elif score >= 0:
            progress.stale += 1
        progress.best_ap = max(score, progress.best_ap)
        return Evaluation(metrics, is_best, detections, result, record)
