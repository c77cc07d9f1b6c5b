"""The training loop: load a batch, take a step, log, evaluate, save."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice

import torch
from accelerate import Accelerator
from torch import nn

from groupdetr.criterion.criterion import SetCriterion
from groupdetr.data.dataset import DetectionDataset, SampleIndex
from groupdetr.data.freed_memory import keep_freed_memory
from groupdetr.data.loader import StepBatchSampler, divide_batch, training_loader
from groupdetr.engine.accelerator import reset_peak_memory
from groupdetr.engine.batch_norms import synchronise_batch_norms
from groupdetr.engine.callback_list import CallbackList, resume_remedy
from groupdetr.engine.callbacks import Callback, EvaluationEnd, Sampler, StepEnd
from groupdetr.engine.checkpoint import CheckpointState, TrainingProgress
from groupdetr.engine.distributed import wrap_for_processes
from groupdetr.engine.evaluator import Evaluator
from groupdetr.engine.feature_cache import (
    CachedChunkedModelWithLoss,
    CachedModelWithLoss,
    FeatureCache,
)
from groupdetr.engine.host_communication import HostCommunication
from groupdetr.engine.launcher import Launcher
from groupdetr.engine.log_records import step_record
from groupdetr.engine.optimizer import (
    MovingAverage,
    create_ema,
    create_optimizer,
    set_learning_rates,
)
from groupdetr.engine.precision import tf32_of
from groupdetr.engine.run_folder import RunFolder
from groupdetr.engine.sampler import ENDLESS, CheckedSampler
from groupdetr.engine.schedule import TrainingSchedule
from groupdetr.engine.sharding import create_mesh, shard
from groupdetr.engine.step_groups import StepGroups, trains_some_groups
from groupdetr.engine.step_results import StepResults
from groupdetr.engine.task import Batch, Task
from groupdetr.engine.training_plan import TrainingPlan
from groupdetr.engine.training_step import TrainingStep
from groupdetr.errors import CallbackError, DivergedError
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.modeling.group_chunks import ChunkedModelWithLoss, ModelWithLoss, with_loss
from groupdetr.settings import Settings
from groupdetr.structures.json_object import JsonObject


class EvaluationStopped(Exception):
    """An evaluation was left because a stop was requested."""


class Trainer:
    """Trains a model according to a `TrainingPlan`.

    ``callbacks`` are called at fixed moments. `TrainerInterface` lists what they may use of the
    trainer. Two methods end the training after the current step: `finish` as complete, and
    `request_stop` as interrupted.
    """

    def __init__(
        self,
        plan: TrainingPlan,
        model: DetectionTransformer,
        criterion: SetCriterion,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.plan = plan
        self.settings: Settings = plan.settings
        self.accelerator: Accelerator = plan.accelerator
        self.task: Task = plan.task
        self.run: RunFolder = plan.run
        self.criterion = criterion
        self.callbacks = CallbackList(callbacks, defer_errors=plan.num_processes > 1)
        # Sharded parameters go to the device one block after the other.
        self.model = model if self.settings.fsdp else model.to(self.accelerator.device)
        if self.settings.freeze:
            self.model.freeze(self.settings.freeze)
        if plan.num_processes > 1:
            synchronise_batch_norms(self.model, self.accelerator.device)
        # Model and criterion as one module: images, targets and objects of the step -> losses.
        self.model_with_loss = with_loss(model, criterion, self.settings.group_chunk)
        step_groups = (
            StepGroups(model, self.settings) if trains_some_groups(self.settings) else None
        )
        rows = step_groups.rows if step_groups else None
        decay, warmup = self.settings.ema, self.settings.ema_warmup
        ema = create_ema(model, decay, warmup) if decay else None
        evaluated_network = self.shard_parameters(ema) if self.settings.fsdp else None
        optimizer = create_optimizer(model, self.settings, rows)
        self.state = CheckpointState(model, optimizer, ema, TrainingProgress(), rows=rows)
        self.schedule = TrainingSchedule(plan, self.state)
        self.hosts = HostCommunication(plan.num_processes, self.accelerator.device)
        self.training_step = TrainingStep(plan, self.state, self.schedule, step_groups, self.hosts)
        self.evaluator = Evaluator(plan, criterion, self.state, self.schedule, evaluated_network)
        self.cache: FeatureCache | None = None  # the features of frozen parts, if they are cached
        self.launcher = Launcher()
        # What this process was asked for, by a signal or a callback.
        self.stop_requested = False
        self.finish_requested = False
        # What all processes have agreed on.
        self.is_stopping = False
        self.is_finishing = False
        self.failure_is_shared = False  # True if all processes know that a callback has failed
        self.own_sampler: Sampler | None = None  # that of a callback, in place of the default
        self.micro_batches: Iterator[Batch] | None = None  # None: the next step starts a loader
        self.counted_until = time.monotonic()  # all wall time of the loop before is in the progress
        self.saved_step: int | None = None  # that of the last checkpoint of this process
        # Says that last.pt was damaged, if the run was resumed from the checkpoint before it.
        self.damage: str | None = None
        # Says that what an evaluation has written was damaged or missing on a resume.
        self.evaluation_damage: str | None = None

    def shard_parameters(self, ema: MovingAverage | None) -> ModelWithLoss | ChunkedModelWithLoss:
        """Divide the parameters of the model and of its average over the processes.

        Return the network that has the model in it that is evaluated.
        """
        mesh = create_mesh(self.accelerator.device, self.num_processes)
        shard(self.model_with_loss, mesh)
        if ema is None:
            return self.model_with_loss
        assert isinstance(ema.module, DetectionTransformer)
        averaged = ModelWithLoss(ema.module, self.criterion)
        shard(averaged, mesh)
        return averaged

    def cache_features(self, dataset: DetectionDataset, log: Callable[[str], None]) -> None:
        """Compute the features of frozen parts for all training images, and train with them.

        ``dataset`` has these images. ``log`` prints a line about the size of the features.
        """
        self.cache = FeatureCache(self.plan, dataset, self.model, log)
        self.model_with_loss = with_loss(
            self.model,
            self.criterion,
            self.settings.group_chunk,
            CachedModelWithLoss,
            CachedChunkedModelWithLoss,
        )

    # what callbacks may use, besides the attributes of `TrainerInterface`

    @property
    def evaluated_model(self) -> nn.Module:
        """The model that is evaluated and saved: the moving average if there is one."""
        return self.state.evaluated

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer. Its learning rates are set from the settings before every step."""
        return self.state.optimizer

    @property
    def step(self) -> int:
        """Optimizer steps so far."""
        return self.state.progress.step

    @property
    def total_steps(self) -> int | None:
        """Optimizer steps of the training; None if it ends after some minutes."""
        return self.schedule.total_steps

    @property
    def epoch(self) -> float:
        """Passes over the training images so far."""
        return self.schedule.epoch

    @property
    def is_main_process(self) -> bool:
        """True for the one process that prints and writes files."""
        return self.plan.is_main_process

    @property
    def num_processes(self) -> int:
        """Processes that train."""
        return self.plan.num_processes

    @property
    def sampler(self) -> Sampler:
        """The sampler: an iterable of the micro-batches of this process, from the next step on.

        It can be replaced in any hook, and the next step uses the new one. A resumed run begins
        with the default sampler again.
        """
        return self.default_sampler() if self.own_sampler is None else self.own_sampler

    @sampler.setter
    def sampler(self, sampler: Sampler) -> None:
        if not isinstance(sampler, Iterable):
            raise TypeError(f"a sampler must be iterable; {type(sampler).__name__} is not")
        self.own_sampler = sampler
        # Batches that were loaded ahead are dropped.
        self.micro_batches = None

    def divide_batch(self, indices: Sequence[int]) -> list[list[int]]:
        """Return the micro-batches of this process, given the indices of all images of a step.

        `ValueError` if they are not as many as ``settings.batch``.
        """
        if len(indices) != self.settings.batch:
            raise ValueError(
                f"a step takes {self.settings.batch} images, and {len(indices)} were given"
            )
        rank, accumulate = self.accelerator.process_index, self.settings.accumulate
        return divide_batch(indices, rank, self.num_processes, accumulate)

    def finish(self) -> None:
        """End the training after the current step as complete.

        The validation images are evaluated if the last evaluation was before this step, and the
        page of the run is written. One process that calls it is enough.
        """
        self.finish_requested = True

    def request_stop(self) -> None:
        """Interrupt the training after the current step, as Ctrl-C does, to be resumed later.

        One process that calls it is enough.
        """
        self.stop_requested = True

    # the loop

    def train(self) -> None:
        """Train from the current state to the end, or until a stop is requested.

        `CallbackError` if a callback or the sampler of a callback fails. Whatever error ends the
        training, last.pt has the state after the last complete step, if that state is finite. The
        exceptions are a loss that is not finite, and an interruption that must end it at once.
        """
        with tf32_of(self.accelerator), self.callbacks.during_training(self):
            try:
                self._train()
            except CallbackError:
                self.save_after_failure()
                raise
            except DivergedError:
                # The weights before it are mostly damaged, too. The former checkpoint is better.
                raise
            except EvaluationStopped:
                self.save()
                self.share_requests()
            except Exception as error:
                self.save_after_error(error)
                raise
            finally:
                # End the worker processes that load images now. A callback may keep the trainer,
                # and then they would only end with it.
                self.micro_batches = None
                self.task.val_loader.close()
                if self.cache is not None:
                    self.cache.close()

    def _train(self) -> None:
        progress = self.state.progress
        reset_peak_memory(self.accelerator.device)
        if self.accelerator.device.type == "cpu":
            keep_freed_memory()
        self.counted_until = time.monotonic()
        network = self.prepare_network()
        self.model.train()
        if self.is_evaluation_missing():
            self.evaluate(network)
            self.save()
        while True:
            self.share_requests()
            if self.is_finished():
                break
            other_seconds = self.uncounted_seconds()
            cpu_started = time.process_time()
            if not self.model.training:
                # A callback has evaluated the model.
                self.model.train()
            step_batches = self.next_micro_batches()
            lr = set_learning_rates(
                self.state.optimizer, self.settings, progress.step, self.schedule.fraction()
            )
            results = self.take_step(network, step_batches)
            progress.step += 1
            progress.images += self.settings.batch
            seconds, other_seconds = self.sync_seconds(self.uncounted_seconds(), other_seconds)
            progress.seconds += seconds
            progress.other_seconds += other_seconds
            progress.cpu_seconds += time.process_time() - cpu_started
            # The checkpoint has this, so that an evaluation that a failing callback prevents is
            # done when the run is resumed.
            progress.evaluation_due = self.schedule.is_evaluation_due()
            self.training_step.is_updating = False
            self.log(results, lr)
            if progress.evaluation_due:
                self.evaluate(network)
                self.save()
            elif self.is_save_due():
                self.save()
        if self.stopped_early():
            self.save()
        elif self.is_finishing and progress.evaluated_step != self.step:
            self.evaluate(network)
            self.save()
        self.share_requests()

    def share_requests(self) -> None:
        """Let all processes know what a callback or a signal requested in one of them.

        They then end the training after the same step. `CallbackError` if a callback failed.
        """
        if self.launcher.has_ended():
            self.request_stop()
        # A signal may change the requests at any time, so each one is read once.
        stop, finish = self.stop_requested, self.finish_requested
        failure = self.callbacks.failure
        if self.num_processes > 1:
            sums = self.hosts.sum([stop, finish, failure is not None])
            stop, finish, failed = (value > 0 for value in sums)
            if failed and failure is None:
                failure = CallbackError(
                    f"a callback failed in another process after step {self.step}",
                    str(self.run.path),
                    resume_remedy(self.run),
                )
        self.is_stopping = self.is_stopping or stop
        self.is_finishing = self.is_finishing or finish
        if failure is not None:
            self.failure_is_shared = True
            raise failure

    def next_micro_batches(self) -> list[Batch]:
        """Return the micro-batches of this process for the next step.

        `CallbackError` if a callback has set a sampler that has no more.
        """
        if self.micro_batches is None:
            self.micro_batches = self.load_micro_batches()
        try:
            micro_batches = list(islice(self.micro_batches, self.settings.accumulate))
        except CallbackError as error:
            # The traceback is left out, because it would keep the loader and its workers alive.
            raise error.with_traceback(None) from error.__cause__
        if len(micro_batches) < self.settings.accumulate and self.own_sampler is not None:
            checked = CheckedSampler(self.own_sampler, self.plan, self.step, self.total_steps)
            raise checked.error(self.step, "ended before the training: it has no images")
        return micro_batches

    def default_sampler(self) -> StepBatchSampler:
        """Return the library's sampler, from the current step on."""
        return StepBatchSampler(
            len(self.task.train),
            self.settings.batch,
            self.settings.seed,
            start=self.step,
            stop=self.total_steps or ENDLESS,
            rank=self.accelerator.process_index,
            ranks=self.num_processes,
            accumulate=self.settings.accumulate,
            first_image=self.state.progress.images,
        )

    def load_micro_batches(self) -> Iterator[Batch]:
        """Yield the micro-batches of this process, from the current step on."""
        sampler: Iterable[list[SampleIndex]]
        if self.own_sampler is not None:
            sampler = CheckedSampler(self.own_sampler, self.plan, self.step, self.total_steps)
        else:
            sampler = self.default_sampler()
        if self.cache is not None:
            return self.cache.batches(sampler)
        device = self.accelerator.device
        return iter(training_loader(self.task.train, sampler, self.plan.workers, device))

    def take_step(self, network: nn.Module, micro_batches: list[Batch]) -> StepResults:
        """Take an optimizer step, and return its losses and the norm of its gradient."""
        return self.training_step.run(network, micro_batches)

    def prepare_network(self) -> nn.Module:
        """Compile the network if the settings say so, and wrap it for several processes.

        A network whose parameters are sharded is ready.
        """
        if self.settings.compile:
            self.model.compile_parts()
            self.criterion.compile_parts()
        if self.plan.num_processes > 1 and not self.settings.fsdp:
            return wrap_for_processes(self.model_with_loss, self.accelerator, self.settings)
        return self.model_with_loss

    # when to stop

    def is_finished(self) -> bool:
        """True if no further step is taken."""
        return self.is_stopping or self.is_finishing or self.schedule.has_ended()

    def is_evaluation_missing(self) -> bool:
        """True if the current weights are evaluated before any step is taken.

        Either the evaluation of this step was prevented in a former part of the run, for example by
        a callback that failed. Or the options with which the run is resumed end it at this step,
        after which no evaluation was due by then.
        """
        progress = self.state.progress
        if progress.evaluation_due:
            return True
        is_complete = self.schedule.has_ended() and not self.schedule.is_paused()
        return is_complete and progress.evaluated_step != progress.step

    def stopped_early(self) -> bool:
        """True if the training was stopped before its end, to be resumed later."""
        if self.is_stopping:
            return True
        return not self.is_finishing and self.schedule.is_paused()

    def uncounted_seconds(self) -> float:
        """Return the wall time since the last call, or since the loop began."""
        now = time.monotonic()
        seconds = now - self.counted_until
        self.counted_until = now
        return seconds

    def sync_seconds(self, *seconds: float) -> list[float]:
        """Return the seconds that the main process measured, so that all stop at the same step."""
        if self.plan.num_processes == 1 or self.plan.total_steps is not None:
            return list(seconds)
        is_main = self.plan.is_main_process
        return self.hosts.sum([value if is_main else 0.0 for value in seconds])

    def is_save_due(self) -> bool:
        """True if a checkpoint is due. With FSDP, the clock of the main process decides for all."""
        is_due = self.schedule.is_save_due()
        if not self.settings.fsdp:
            return is_due
        return self.hosts.sum([is_due and self.is_main_process]) == [1]

    # what is written, and when the callbacks are called

    def log(self, results: StepResults, lr: float) -> None:
        """Write the first ten steps and every tenth step to the log, and call the callbacks.

        Files are written first, because a callback may fail. The results of other steps are not
        read here, because that would wait for a GPU.
        """
        step = self.step
        record: JsonObject | None = None
        if step % 10 == 0 or step <= 10:
            # In all processes: one that ended alone would leave the others waiting.
            self.training_step.require_finite()
            if self.is_main_process:
                groups = self.training_step.groups
                num_groups = None if groups is None else len(groups)
                record = step_record(self.state, self.schedule, results, lr, num_groups)
                self.run.append(record)
        event = StepEnd(
            step=step,
            total=self.total_steps,
            progress=self.schedule.fraction(),
            lr=lr,
            results=results,
        )
        self.callbacks.on_step_end(self, event)
        if record is not None:
            self.callbacks.on_record(self, record)

    def evaluate(self, network: nn.Module) -> None:
        """Evaluate the validation images, and call the callbacks."""
        self.training_step.require_finite()
        other_seconds = self.uncounted_seconds()
        evaluation = self.evaluator.run(self.on_evaluation_progress)
        seconds, other_seconds = self.sync_seconds(self.uncounted_seconds(), other_seconds)
        self.state.progress.other_seconds += other_seconds
        self.schedule.end_evaluation(seconds)
        network.train()
        # All files are written before the callbacks are called, because a callback may fail.
        if evaluation.record is not None and evaluation.result is not None:
            self.callbacks.on_record(self, evaluation.record)
            self.callbacks.log_detections(self.step, evaluation.detections, evaluation.result)
        event = EvaluationEnd(
            step=self.step,
            epoch=self.epoch,
            seconds=self.state.progress.seconds,
            metrics=evaluation.metrics,
            is_best=evaluation.is_best,
        )
        self.callbacks.on_evaluation_end(self, event)

    def on_evaluation_progress(self, done: int, total: int) -> None:
        """Call the callbacks after a batch of an evaluation.

        `EvaluationStopped` if a stop is requested in any process. All processes call this equally
        often. The evaluation is done when the run is resumed.
        """
        self.callbacks.on_evaluation_progress(self, done, total)
        self.share_requests()
        if self.is_stopping:
            raise EvaluationStopped

    def save(self) -> None:
        """Write last.pt, from which the run can be resumed, and call the callbacks.

        `DivergedError` if the last step has spoilt the state.
        """
        self.training_step.require_finite()
        self.schedule.last_save_time = time.monotonic()
        if self.is_main_process:
            self.callbacks.update_states(self)
        self.write_checkpoint()
        if self.is_main_process:
            self.callbacks.on_checkpoint(self)

    def save_after_failure(self) -> None:
        """Write last.pt after a callback has failed, if the last step was finite.

        No hook is called. With FSDP it is written only if all processes know of the failure,
        because all have a part of the state. The former checkpoint is kept otherwise.
        """
        try:
            self.training_step.require_finite()
            is_finite = True
        except DivergedError:
            is_finite = False
        if is_finite and (self.failure_is_shared or not self.settings.fsdp):
            if self.is_main_process:
                # A callback that cannot return its state keeps that of the former checkpoint.
                with suppress(CallbackError):
                    self.callbacks.update_states(self)
            self.write_checkpoint()
        if self.failure_is_shared:
            # A process that ended now could make the launcher kill the one that writes.
            self.accelerator.wait_for_everyone()

    def save_after_error(self, error: Exception) -> None:
        """Write last.pt after an error that no callback caused, if the state is whole and finite.

        No hook is called. A second error is added to the first one as a note. With FSDP the former
        checkpoint is kept, because the other processes may not have the error.
        """
        if (
            not self.is_main_process
            or self.settings.fsdp
            or self.training_step.is_updating
            or self.saved_step == self.step
        ):
            return
        try:
            if self.state.is_finite():
                with suppress(CallbackError):
                    self.callbacks.update_states(self)
                self.write_checkpoint()
        except Exception as second_error:
            error.add_note(f"In addition, the state could not be saved: {second_error}")

    def write_checkpoint(self) -> None:
        """Write last.pt with the states of the callbacks as they are known, in the main process.

        With FSDP all processes have to call this.
        """
        if self.is_main_process or self.settings.fsdp:
            self.state.callbacks = self.callbacks.states
            self.state.save(self.run.last, self.run.previous, self.is_main_process)
            self.saved_step = self.step

    def resume(self) -> list[str]:
        """Continue from last.pt, and give the callbacks the states that they had.

        Return the classes of the callbacks that the run had and that it does not have now.
        If last.pt is damaged, the checkpoint before it is used, and ``damage`` says so. If what an
        evaluation has written is damaged or missing, the next one writes it again, and
        ``evaluation_damage`` says so. `UsageError` if the checkpoint does not fit, or if none is
        whole.
        """
        self.damage = self.state.load_whole(self.run.last, self.run.previous)
        self.saved_step = None if self.damage else self.step
        self.evaluation_damage = self.evaluator.files.check()
        return self.callbacks.load_states(self.state.callbacks, self)
