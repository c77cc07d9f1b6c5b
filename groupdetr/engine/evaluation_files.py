"""What an evaluation during training leaves in the folder of the run."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from groupdetr.checkpoints import native
from groupdetr.engine.checkpoint import CheckpointState
from groupdetr.engine.log_records import evaluation_record, moment
from groupdetr.engine.run_folder import write_json
from groupdetr.engine.schedule import TrainingSchedule
from groupdetr.engine.task import EvaluationResult
from groupdetr.engine.training_plan import TrainingPlan
from groupdetr.errors import WeightsError
from groupdetr.structures.json_object import JsonObject


class EvaluationFiles:
    """Writes the metrics and the best weights, and checks them when a run is resumed."""

    def __init__(
        self, plan: TrainingPlan, state: CheckpointState, schedule: TrainingSchedule
    ) -> None:
        self.plan = plan
        self.run = plan.run
        self.state = state
        self.schedule = schedule

    def write(
        self,
        result: EvaluationResult,
        metrics: dict[str, float],
        is_best: bool,
        weights: Mapping[str, Tensor],
    ) -> JsonObject:
        """Write the weights if they are the best, and the metrics to the log and to results.csv.

        ``weights`` are those that were evaluated. Return the record of the log.
        """
        when = moment(self.state, self.schedule)
        device = self.plan.accelerator.device
        record = evaluation_record(self.state, self.schedule, metrics, device)
        if is_best or not self.run.best.is_file():
            self.plan.save_best(self.state.evaluated, weights)
            best_metrics = {**when, **result.to_json()}
            # The page of the run has these. The folder of `val` is also written by `groupdetr val`.
            if details := result.details():
                write_json(self.run.best_errors, {**when, **details})
            write_json(self.run.best_metrics, best_metrics)
            write_json(self.run.val / "metrics.json", best_metrics)
        # The record comes last: an evaluation in the log is one whose weights are written. A
        # training counts as complete by that of its last step, even if it was killed after it.
        self.run.append(record)
        self.run.write_results(self.run.records())
        return record

    def check(self) -> str | None:
        """Let the next evaluation write what an earlier one has left, if it is damaged or missing.

        That are the weights of the best evaluation, and the record of the last one in the log.
        Return a sentence about it; None if all is well.
        """
        progress = self.state.progress
        if progress.evaluated_step < 0:
            return None
        damages = []
        try:
            native.read(self.run.best)
        except WeightsError as error:
            damages.append(f"{self.run.best}: {error.what}")
            progress.best_ap = -1.0
            progress.stale = 0
        if all(record["step"] != progress.evaluated_step for record in self.run.evaluations()):
            damages.append(f"{self.run.log}: it lacks the last evaluation")
        if not damages:
            return None
        when = "by the next evaluation"
        if progress.evaluated_step == progress.step:
            when = "by another evaluation of the current weights"
            progress.evaluation_due = True
            # These are the matches of the current weights, and not of those before them.
            self.state.matched = None
        return f"{'; '.join(damages)}; this is written again {when}"
