"""The training loop: batch, forward, criterion, backward, clip, step, log, evaluate, save."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice

import torch
from torch import Tensor, nn

from groupdetr.criterion.criterion import SetCriterion
from groupdetr.data.loader import StepBatchSampler, training_loader
from groupdetr.engine.accelerator import peak_memory_mb
from groupdetr.engine.callbacks import Callback, CallbackList, EvaluationEnd, StepEnd
from groupdetr.engine.checkpoint import CheckpointState, TrainingProgress
from groupdetr.engine.matching_instability import ValidationPass
from groupdetr.engine.optimizer import create_ema, create_optimizer, set_learning_rates
from groupdetr.engine.run_folder import write_json
from groupdetr.engine.task import Batch, EvaluationResult
from groupdetr.engine.training_plan import TrainingPlan
from groupdetr.errors import DivergedError
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.modeling.group_chunks import with_loss

SAVE_SECONDS = 300.0  # between checkpoints; an interruption loses at most this much training
ENDLESS = 1 << 40  # steps of a training that ends after some minutes


class Trainer:
    """Trains a model according to a `TrainingPlan`.

    ``callbacks`` are called at fixed moments. `request_stop` ends the training after the current
    step, with a checkpoint.
    """

    def __init__(
        self,
        plan: TrainingPlan,
        model: DetectionTransformer,
        criterion: SetCriterion,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.plan = plan
        self.settings = plan.settings
        self.accelerator = plan.accelerator
        self.task = plan.task
        self.run = plan.run
        self.criterion = criterion
        self.callbacks = CallbackList(callbacks)
        self.model = model.to(self.accelerator.device)
        # Model and criterion as one module: images, targets and mean_objects -> losses.
        self.model_with_loss = with_loss(model, criterion, self.settings.group_chunk)
        optimizer = create_optimizer(model, self.settings)
        ema = create_ema(model, self.settings.ema) if self.settings.ema else None
        self.state = CheckpointState(model, optimizer, ema, TrainingProgress())
        self.stop_requested = False
        self.last_evaluation_at = 0.0  # seconds of training before the last evaluation
        self.last_evaluation_seconds = 1.0  # duration of the last evaluation
        self.last_save_time = time.monotonic()

    def request_stop(self) -> None:
        """End the training after the current step."""
        self.stop_requested = True

    # the loop

    def train(self) -> None:
        """Train from the current state to the end, or until a stop is requested."""
        with self.callbacks:
            self._train()
            if self.stopped_early():
                self.save()

    def _train(self) -> None:
        progress = self.state.progress
        micro_batches = self.micro_batches()
        network = self.prepare_network()
        self.model.train()
        while not self.is_finished():
            started = time.monotonic()
            self.seed_step()
            step_batches = list(islice(micro_batches, self.settings.accumulate))
            lr = set_learning_rates(
                self.state.optimizer, self.settings, progress.step, self.progress_fraction()
            )
            losses, grad_norm = self.step(network, step_batches)
            progress.step += 1
            progress.seconds += self.sync_seconds(time.monotonic() - started)
            self.log(losses, grad_norm, lr)
            if self.is_evaluation_due():
                self.evaluate(network)
                self.save()
            elif self.is_save_due():
                self.save()

    def step(
        self, network: nn.Module, micro_batches: list[Batch]
    ) -> tuple[dict[str, float], float]:
        """Run one optimizer step over all micro-batches of a batch.

        Return the losses by name, averaged over micro-batches and processes, and the norm of the
        gradient before clipping.
        """
        self.state.optimizer.zero_grad(set_to_none=True)
        mean_objects = self.mean_objects(micro_batches)
        sums: dict[str, Tensor] = {}
        for i, micro_batch in enumerate(micro_batches):
            is_last = i + 1 == len(micro_batches)
            with self.gradient_sync(network, is_last):
                loss, parts = self.compute_loss(network, micro_batch, mean_objects)
                loss.div(len(micro_batches)).backward()
            for name, part in parts.items():
                sums[name] = sums.get(name, 0) + part / len(micro_batches)
        grad_norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        losses, norm = self.to_host(sums, grad_norm)
        if not all(map(math.isfinite, [*losses.values(), norm])):
            raise self.divergence_error("the loss or its gradient is not finite", micro_batches)
        self.state.optimizer.step()
        if self.state.ema is not None:
            self.state.ema.update_parameters(self.model)
        return losses, norm

    def compute_loss(
        self, network: nn.Module, micro_batch: Batch, mean_objects: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum of all losses, which has a gradient, and the losses by name."""
        device = self.accelerator.device
        targets = [target.to(device) for target in micro_batch.targets]
        try:
            with self.accelerator.autocast():
                return network(micro_batch.images(device), targets, mean_objects)
        except DivergedError as error:
            raise self.divergence_error(f"{error.what} ({error.where})", [micro_batch]) from error

    # parts of a step

    def mean_objects(self, micro_batches: list[Batch]) -> Tensor:
        """Return the mean number of objects of a micro-batch, over all processes.

        Every loss of this step is divided by it.
        """
        objects = sum(len(target) for batch in micro_batches for target in batch.targets)
        count = torch.tensor(float(objects) / len(micro_batches), device=self.accelerator.device)
        return self.accelerator.reduce(count, "mean")

    def to_host(self, sums: dict[str, Tensor], grad_norm: Tensor) -> tuple[dict[str, float], float]:
        """Average the losses over processes, and copy them and the norm to the host at once."""
        losses = self.accelerator.reduce(torch.stack(list(sums.values())), "mean")
        *values, norm = torch.cat([losses, grad_norm[None]]).tolist()
        return dict(zip(sums, values)), norm

    def gradient_sync(self, network: nn.Module, is_last: bool) -> AbstractContextManager[None]:
        """Let processes exchange gradients once a step, with the last micro-batch."""
        return nullcontext() if is_last else self.accelerator.no_sync(network)

    def seed_step(self) -> None:
        """Seed torch by (seed, step, process), so that a resumed run draws the same numbers."""
        key = (self.settings.seed, self.state.progress.step, self.accelerator.process_index)
        torch.manual_seed(hash(key) & 0x7FFFFFFFFFFFFFFF)

    def micro_batches(self) -> Iterator[Batch]:
        """Yield the micro-batches of this process, from the current step on."""
        sampler = StepBatchSampler(
            len(self.task.train),
            self.settings.batch,
            self.settings.seed,
            start=self.state.progress.step,
            stop=self.plan.total_steps or ENDLESS,
            rank=self.accelerator.process_index,
            ranks=self.plan.num_processes,
            accumulate=self.settings.accumulate,
        )
        return iter(training_loader(self.task.train, sampler, self.plan.workers))

    def prepare_network(self) -> nn.Module:
        """Compile the network if the settings say so, and wrap it for several processes."""
        if self.settings.compile:
            self.model.compile_parts()
            self.criterion.compile_parts()
        if self.plan.num_processes > 1:
            return self.accelerator.prepare_model(self.model_with_loss)
        return self.model_with_loss

    def divergence_error(self, what: str, micro_batches: list[Batch]) -> DivergedError:
        """Return the error for values that are not finite, with the names of the images."""
        names = self.task.train_image_names(
            [index for batch in micro_batches for index in batch.indices]
        )
        return DivergedError(
            f"{what}, at step {self.state.progress.step + 1}",
            f"images: {', '.join(names)}",
            f"the last good checkpoint is {self.run.last}; "
            "lower --lr or --clip and resume, or check these images",
        )

    # when to stop, evaluate and save

    def progress_fraction(self) -> float:
        """Return the fraction of the training that is done, 0 to 1."""
        progress = self.state.progress
        total = self.plan.total_steps
        if total is not None:
            return progress.step / total
        elapsed = progress.seconds + progress.evaluation_seconds
        return elapsed / (60 * (self.settings.minutes or 1))

    def is_finished(self) -> bool:
        """True if no further step is taken."""
        if self.stop_requested or self.state.progress.step == self.plan.stop_after:
            return True
        patience = self.settings.early_stop
        if patience is not None and self.state.progress.stale >= patience:
            return True
        return self.progress_fraction() >= 1

    def stopped_early(self) -> bool:
        """True if the training was stopped before its end, to be resumed later."""
        if self.stop_requested:
            return True
        reached_stop = self.state.progress.step == self.plan.stop_after
        return reached_stop and self.progress_fraction() < 1

    def epoch(self, step: int | None = None) -> float:
        """Return the number of epochs after ``step`` steps, by default the current ones."""
        step = self.state.progress.step if step is None else step
        return step * self.settings.batch / len(self.task.train)

    def is_evaluation_due(self) -> bool:
        """True every ``eval_every`` epochs and at the end.

        A training that ends after some minutes spends at most a twentieth of its time on it.
        """
        progress = self.state.progress
        if self.progress_fraction() >= 1:
            return True
        every = self.settings.eval_every
        is_due = self.epoch(progress.step) // every > self.epoch(progress.step - 1) // every
        if self.plan.total_steps is None:
            seconds_since = progress.seconds - self.last_evaluation_at
            return is_due and seconds_since > 20 * self.last_evaluation_seconds
        return is_due

    def is_save_due(self) -> bool:
        """True every ``save_every`` steps, and if the last checkpoint is some minutes old."""
        every = self.settings.save_every
        is_due = every is not None and self.state.progress.step % every == 0
        return is_due or time.monotonic() - self.last_save_time > SAVE_SECONDS

    def sync_seconds(self, seconds: float) -> float:
        """Return the seconds that the main process measured, so that all stop at the same step."""
        if self.plan.num_processes == 1 or self.plan.total_steps is not None:
            return seconds
        value = torch.tensor(
            seconds if self.plan.is_main_process else 0.0, device=self.accelerator.device
        )
        return float(self.accelerator.reduce(value, "sum"))

    # what is written

    def log(self, losses: dict[str, float], grad_norm: float, lr: float) -> None:
        """Call the callbacks, and write the first ten steps and every tenth step to the log."""
        progress = self.state.progress
        loss = sum(losses.values())
        event = StepEnd(progress.step, self.plan.total_steps, self.progress_fraction(), loss, lr)
        self.callbacks.on_step_end(event)
        if not self.plan.is_main_process:
            return
        if progress.step % 10 == 0 or progress.step <= 10:
            self.write_record(
                {
                    "step": progress.step,
                    "epoch": round(self.epoch(), 4),
                    "loss": loss,
                    "lr": lr,
                    "norm": grad_norm,
                    "seconds": round(progress.seconds, 3),
                    "losses": losses,
                }
            )

    def write_record(self, record: dict[str, object]) -> None:
        """Append a record to log.jsonl, and pass it to the callbacks."""
        self.run.append(record)
        self.callbacks.on_record(record)

    def evaluate(self, network: nn.Module) -> None:
        """Evaluate the validation images, measure the matching instability, and save the best."""
        started = time.monotonic()
        progress = self.state.progress
        model = self.state.evaluated
        assert isinstance(model, DetectionTransformer)
        validation_pass = ValidationPass(
            model,
            self.criterion,
            self.task,
            self.accelerator,
            self.settings.instability_images,
        )
        detections, matched = validation_pass.run(
            self.plan.micro_batch_size, self.plan.workers, self.callbacks.on_evaluation_progress
        )
        result = self.task.evaluate(detections)
        instability = validation_pass.instability(matched, self.state.matched)
        self.state.matched = matched
        main_metric = next(iter(result.stats.values()))
        score = 0.0 if math.isnan(main_metric) else main_metric
        is_best = score > progress.best_ap
        if is_best:
            progress.best_ap = score
            progress.stale = 0
        else:
            progress.stale += 1
        self.last_evaluation_at = progress.seconds
        self.last_evaluation_seconds = self.sync_seconds(time.monotonic() - started)
        progress.evaluation_seconds += self.last_evaluation_seconds
        if self.plan.is_main_process:
            self.record_evaluation(result, instability, is_best)
        network.train()

    def record_evaluation(
        self, result: EvaluationResult, instability: dict[str, float], is_best: bool
    ) -> None:
        """Write the metrics to the log and to results.csv, and the weights if they are the best."""
        progress = self.state.progress
        metrics = {
            name: None if math.isnan(value) else value
            for name, value in (result.stats | instability).items()
        }
        when = {
            "step": progress.step,
            "epoch": round(self.epoch(), 4),
            "seconds": round(progress.seconds, 3),
        }
        self.write_record({**when, "peak_memory_mb": round(peak_memory_mb(), 1), **metrics})
        self.run.write_results(self.run.records())
        if is_best or not self.run.best.is_file():
            self.plan.save_best(self.state.evaluated)
            write_json(self.run.val / "metrics.json", {**when, **result.to_json()})
        shown = {name: result.stats[name] for name in self.task.metrics}
        self.callbacks.on_evaluation_end(
            EvaluationEnd(self.epoch(), progress.seconds, shown, is_best)
        )

    def save(self) -> None:
        """Write last.pt, from which the run can be resumed."""
        self.last_save_time = time.monotonic()
        if self.plan.is_main_process:
            self.state.save(self.run.last)
            self.callbacks.on_checkpoint()
