"""When a training evaluates, saves and ends."""

from __future__ import annotations

import math
import time
from fractions import Fraction

from groupdetr.engine.checkpoint import CheckpointState
from groupdetr.engine.training_plan import TrainingPlan

SAVE_SECONDS = 300.0  # between checkpoints; an interruption loses at most this much training


class TrainingSchedule:
    """Decides from the plan of a training, and from how far it has come."""

    def __init__(self, plan: TrainingPlan, state: CheckpointState) -> None:
        self.plan = plan
        self.settings = plan.settings
        self.state = state
        self.last_save_time = time.monotonic()

    @property
    def total_steps(self) -> int | None:
        """Optimizer steps of the training; None if it ends after some minutes.

        If a resumed run has another batch, the rest of its epochs takes another number of steps.
        """
        settings = self.settings
        progress = self.state.progress
        same_batch = progress.images == progress.step * settings.batch
        if same_batch or settings.steps is not None or settings.minutes is not None:
            return self.plan.total_steps
        remaining = settings.epochs * len(self.plan.task.train) - progress.images
        return progress.step + max(0, math.floor(remaining / settings.batch + 0.5))

    @property
    def epoch(self) -> float:
        """Passes over the training images so far."""
        return self.state.progress.images / len(self.plan.task.train)

    def fraction(self) -> float:
        """Return the fraction of the training that is done, 0 to 1."""
        progress = self.state.progress
        total = self.total_steps
        if total is not None and self.settings.steps is not None:
            return progress.step / total
        if total is not None:
            # In images, because a resumed run may have had another batch.
            remaining = (total - progress.step) * self.settings.batch
            return progress.images / (progress.images + remaining)
        # All wall time, because a user who gives some minutes waits for checkpoints, too.
        elapsed = progress.seconds + progress.evaluation_seconds + progress.other_seconds
        return min(1.0, elapsed / (60 * (self.settings.minutes or 1)))

    def has_ended(self) -> bool:
        """True if no further step is taken, unless a stop was requested before."""
        if self.state.progress.step == self.plan.stop_after:
            return True
        return self.is_stopped_by_patience() or self.fraction() >= 1

    def is_stopped_by_patience(self) -> bool:
        """True if as many evaluations as ``early_stop`` have brought no better score."""
        patience = self.settings.early_stop
        return patience is not None and self.state.progress.stale >= patience

    def is_paused(self) -> bool:
        """True after the step ``stop_after`` if it is not the last one, to be resumed later."""
        return self.state.progress.step == self.plan.stop_after and self.fraction() < 1

    def is_evaluation_due(self) -> bool:
        """True every ``eval_every`` epochs and at the end.

        A training that ends after some minutes spends at most a twentieth of its time on it.
        """
        progress = self.state.progress
        if self.fraction() >= 1:
            return True
        # Exact numbers: floats would take the third tenth of an epoch as a little less.
        every = Fraction(str(self.settings.eval_every)) * len(self.plan.task.train)
        is_due = progress.images // every > (progress.images - self.settings.batch) // every
        if self.plan.total_steps is None:
            seconds_since = progress.seconds - progress.seconds_at_evaluation
            return is_due and seconds_since > 20 * progress.last_evaluation_seconds
        return is_due

    def end_evaluation(self, seconds: float) -> None:
        """Record that the current weights were evaluated, and how long that took."""
        progress = self.state.progress
        progress.seconds_at_evaluation = progress.seconds
        progress.last_evaluation_seconds = seconds
        progress.evaluation_seconds += seconds
        progress.evaluated_step = progress.step
        progress.evaluation_due = False

    def is_save_due(self) -> bool:
        """True every ``save_every`` steps, and if the last checkpoint is some minutes old."""
        every = self.settings.save_every
        is_due = every is not None and self.state.progress.step % every == 0
        return is_due or time.monotonic() - self.last_save_time > SAVE_SECONDS
