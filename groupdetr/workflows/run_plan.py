"""The training of a detector by its plan, from its first weights to its page."""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from types import FrameType

import torch
import yaml

from groupdetr.console.output import create_console
from groupdetr.console.text import quote
from groupdetr.data.dataset import DetectionDataset
from groupdetr.detectors.recipe import Recipe
from groupdetr.engine.accelerator import disconnect, disconnect_after_error, environment
from groupdetr.engine.callbacks import Callback
from groupdetr.engine.main_process import run_on_main
from groupdetr.engine.memory import is_out_of_memory
from groupdetr.engine.progress import ProgressCallback
from groupdetr.engine.run_folder import timestamp, write_json, write_text
from groupdetr.engine.run_lock import locked
from groupdetr.engine.tracking import TrackingCallback, create_tracking
from groupdetr.engine.trainer import Trainer
from groupdetr.errors import CallbackError, GroupDETRError, UsageError
from groupdetr.registry import loaded_plugins, recipe_to_dict
from groupdetr.settings import (
    PARTS,
)
from groupdetr.structures.json_object import JsonObject
from groupdetr.workflows.advice import advice, batch_norm_notes, describe
from groupdetr.workflows.auto_memory import oom_hint
from groupdetr.workflows.detector_plan import DetectorPlan
from groupdetr.workflows.plan_training import expect_no_run
from groupdetr.workflows.precision_notes import precision_notes
from groupdetr.workflows.resume import expect_steps_left
from groupdetr.workflows.task_workflows import workflows_for
from groupdetr.workflows.training_result import TrainingResult

console = create_console()
# How long after the first signal another one counts as the same request.
CTRL_C_SECONDS = 0.2
SIGTERM_SECONDS = 1.0
LAUNCHER_SECONDS = 3.0  # torchrun and others pass on a signal to their processes
# Parts of the messages of gloo and NCCL when another process is gone.
LOST_CONNECTION = ("onnection closed by peer", "onnection reset", "roken pipe", "NCCL error")


def run_plan(plan: DetectorPlan, callbacks: Sequence[Callback] = ()) -> TrainingResult:
    """Build the detector, train it, and write its page, while no other process uses the folder."""
    with locked(plan.run) if plan.is_main_process else nullcontext():
        if plan.is_main_process and not plan.resumes:
            # Another process may have written a run since the folder was chosen.
            expect_no_run(plan.run)
        return _run_plan(plan, callbacks)


def _run_plan(plan: DetectorPlan, callbacks: Sequence[Callback]) -> TrainingResult:
    trainer = build_trainer(plan, callbacks)
    plan.log(describe(plan, trainer.model, trainer.total_steps))
    notes = [*advice(plan), *batch_norm_notes(plan, trainer.model), *precision_notes(plan)]
    for line in notes:
        plan.log(line)
    tracking = start_tracking(plan, trainer)
    with nullcontext() if tracking is None else tracking:
        prepare_run(plan, trainer)
        with disconnect_after_error():
            try:
                if plan.settings.cache_features:
                    assert isinstance(plan.task.train, DetectionDataset)
                    trainer.cache_features(plan.task.train, plan.log)
                with stop_on_signals(trainer):
                    trainer.train()
            except CallbackError:
                if not trainer.failure_is_shared:
                    # The others do not know of it, for example if `on_train_end` failed.
                    disconnect()
                raise
            except Exception as error:
                # The remedy of other errors does not say how to go on.
                if trainer.saved_step is not None:
                    step = trainer.saved_step
                    plan.log(f"the last checkpoint is of step {step}; {resume_command(plan)}")
                if is_lost_connection(error) and plan.num_processes > 1:
                    raise lost_connection_error(plan) from error
                if not (isinstance(error, RuntimeError | MemoryError) and is_out_of_memory(error)):
                    raise
                step = trainer.state.progress.step + 1
                # Free what the failed step holds, before a hint is measured.
                del trainer
                traceback.clear_frames(error.__traceback__)
                hint = oom_hint(plan)
                what = f"memory ran out at step {step}"
                raise UsageError(what, str(plan.run.path), hint) from error
        return finish(plan, trainer, tracking)


def build_trainer(plan: DetectorPlan, callbacks: Sequence[Callback] = ()) -> Trainer:
    """Build the detector with its first weights, or with those of the run that is resumed.

    ``callbacks`` are called in all processes, after the library's own loggers.
    """
    torch.manual_seed(plan.settings.seed)
    model = plan.recipe.build()
    if plan.config.weights is not None and not plan.resumes:
        # Imported here: the importers of all published checkpoints take time.
        from groupdetr.weights.loading import load_weights

        class_names = [category.name for category in plan.dataset.categories]
        report = load_weights(
            model,
            plan.config.weights,
            new_head=True,
            class_names=class_names,
            parts=plan.config.weights_of or PARTS,
        )
        plan.log("\n".join(report.lines))
    criterion = plan.recipe.criterion()
    trainer = Trainer(plan, model, criterion, callbacks)
    if plan.resumes:
        left_out = trainer.resume()
        for damage in (trainer.damage, trainer.evaluation_damage):
            if damage is not None:
                plan.log(damage)
        for name in left_out:
            plan.log(
                f"this run was trained with the callback {name}, which is not among the callbacks "
                "now; it is left out, and its state is dropped"
            )
        expect_steps_left(plan, trainer)
    if plan.is_main_process:
        trainer.callbacks.loggers.append(ProgressCallback(console))
    return trainer


def start_tracking(plan: DetectorPlan, trainer: Trainer) -> TrackingCallback | None:
    """Start the trackers of --log-with, before the files of the run are written.

    Return the callback that sends them everything; None without trackers, and in all processes but
    the main one. `UsageError` for a tracker that cannot be started.
    """
    if not plan.config.log_with or not plan.is_main_process:
        return None
    draw = partial(workflows_for(plan.task).draw_validation, plan.task)
    tracking = create_tracking(plan.config.log_with, plan.run, draw, plan.log, plan.resumes)
    # An evaluation that is due is done again, and with it what was logged at its step.
    redo_from = trainer.step + (0 if trainer.state.progress.evaluation_due else 1)
    recipe = trainer.model.recipe
    assert isinstance(recipe, Recipe)
    tracking.start(tracked_configuration(plan, recipe), redo_from)
    for tracker in tracking.trackers:
        plan.log(f"tracker {tracker.name}: {tracker.how_to_view()}")
    trainer.callbacks.loggers.append(tracking)
    return tracking


def tracked_configuration(plan: DetectorPlan, recipe: Recipe) -> JsonObject:
    """Return what trackers show as the configuration of the run: config.yaml and the recipe."""
    config = plan.config.to_yaml(recipe, plan.recipe, plan.settings)
    settings = config.pop("settings")
    return {**config, **settings, "recipe": recipe_to_dict(recipe)}


def prepare_run(plan: DetectorPlan, trainer: Trainer) -> None:
    """Write the files that describe the run, and its first checkpoint.

    The files are those of the environment, the data and the configuration.
    """
    run = plan.run
    if plan.is_main_process:
        run.path.joinpath("weights").mkdir(parents=True, exist_ok=True)
        commands = run.commands() if plan.resumes else []
        machine = {"device": plan.accelerator.device.type, **environment()}
        command = {"time": timestamp(), "step": trainer.step, "command": machine["command"]}
        write_json(run.environment, {**machine, "commands": [*commands, command]})
        data = {**plan.dataset.metadata(), "fingerprint": plan.dataset.fingerprint()}
        write_json(run.data, data)
        if plan.resumes:
            run.rewind(trainer.step, trainer.state.progress.evaluation_due)
    if not plan.resumes:
        # The checkpoint is written before the configuration, because a folder with a configuration
        # counts as a run, and every run can be resumed.
        trainer.write_checkpoint()
    if plan.is_main_process:
        recipe = trainer.model.recipe
        assert isinstance(recipe, Recipe)
        config = plan.config.to_yaml(recipe, plan.recipe, plan.settings)
        write_text(run.config, yaml.safe_dump(config, sort_keys=False))
    plan.accelerator.wait_for_everyone()


@contextmanager
def stop_on_signals(trainer: Trainer) -> Iterator[None]:
    """Let Ctrl-C, SIGTERM and a closed terminal end the training with a checkpoint.

    It ends after the current step, or after the current batch of an evaluation. A second signal
    ends it at once. One request may arrive as several signals in quick succession: a launcher
    passes on what its processes have received already, and `timeout` sends its signal twice.
    """
    first_time: float | None = None

    def stop(number: int, _frame: FrameType | None) -> None:
        nonlocal first_time
        now = time.monotonic()
        if first_time is None:
            first_time = now
            trainer.request_stop()
        elif now - first_time > same_request_seconds(number):
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        # Only the main thread can handle signals.
        yield
        return
    former = {}
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP.
        # Programs that nohup starts ignore SIGHUP.
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            former[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def same_request_seconds(number: int) -> float:
    """Return for how many seconds after the first signal this one belongs to the same request."""
    if "TORCHELASTIC_RUN_ID" in os.environ or "LOCAL_WORLD_SIZE" in os.environ:
        return LAUNCHER_SECONDS
    return CTRL_C_SECONDS if number == signal.SIGINT else SIGTERM_SECONDS


def is_lost_connection(error: Exception) -> bool:
    """True if a process of the training could not reach another one."""
    text = str(error)
    return isinstance(error, RuntimeError) and any(part in text for part in LOST_CONNECTION)


def lost_connection_error(plan: DetectorPlan) -> GroupDETRError:
    """Return the error of a process that could not reach another one."""
    return GroupDETRError(
        "another process of this training has ended",
        str(plan.run.path),
        "its own message says why; then resume this run",
    )


def finish(
    plan: DetectorPlan, trainer: Trainer, tracking: TrackingCallback | None = None
) -> TrainingResult:
    """Write the page of the run, send it to trackers, and print the best metric and what is next.

    A training that was stopped before its end gets no page.
    """
    run = plan.run
    progress = trainer.state.progress
    if trainer.stopped_early():
        if tracking is not None:
            tracking.outcome = "interrupted"
        plan.log(f"stopped after step {progress.step}; {resume_command(plan)}")
        return result_of(plan, trainer, interrupted=trainer.is_stopping)
    if trainer.is_finishing:
        plan.log(f"a callback finished the training after step {progress.step}")
    elif trainer.schedule.is_stopped_by_patience() and trainer.schedule.fraction() < 1:
        # Also said if the run is resumed with a greater length, which does not change it.
        plan.log(
            f"--early-stop {plan.settings.early_stop} ended the training after step "
            f"{progress.step}; to go on, {resume_command(plan)} --early-stop None"
        )
    workflows = workflows_for(plan.task)
    # The other processes wait: they may have to end at the same time as the main one.
    try:
        run_on_main(partial(write_page, plan, workflows.report), plan.accelerator)
    except RuntimeError as error:
        if not is_lost_connection(error):
            raise
        disconnect()
        raise lost_connection_error(plan) from error
    if tracking is not None:
        tracking.log_result(progress.step)
    metric = plan.task.metrics[0]
    if progress.best_ap < 0:
        best = f"{metric} is undefined, because no validation image has an object to be found"
    else:
        best = f"best {metric} {100 * progress.best_ap:.1f}"
    plan.log(f"{best}; weights: {run.best}; report: {run.report}")
    folder = quote(run.path)
    predict = f"groupdetr predict {folder} {workflows.predict_argument}{plugin_flags()}"
    plan.log(f"next: {predict}, groupdetr val {folder} --per-group{plugin_flags()}")
    return result_of(plan, trainer, interrupted=False)


def resume_command(plan: DetectorPlan) -> str:
    """Return how the run is resumed, for the end of a line."""
    return f"resume with: groupdetr train --resume {quote(plan.run.path)}{plugin_flags()}"


def plugin_flags() -> str:
    """Return the options that a command needs to know the model, with a space in front."""
    return "".join(f" --plugin {quote(name)}" for name in loaded_plugins())


def result_of(plan: DetectorPlan, trainer: Trainer, interrupted: bool) -> TrainingResult:
    """Return the result of a training that has ended."""
    progress = trainer.state.progress
    return TrainingResult(
        path=plan.run.path,
        groups=plan.recipe.num_groups,
        steps=progress.step,
        epochs=round(trainer.epoch, 4),
        seconds=round(progress.seconds, 3),
        interrupted=interrupted,
    )


def write_page(plan: DetectorPlan, report: Callable[..., object]) -> None:
    """Write report.html.

    If that fails, the error message explains that the training itself is complete.
    """
    run = plan.run
    try:
        report(run, plan.dataset)
    except Exception as error:
        what = (
            f"the training is complete, but its page could not be written: "
            f"{type(error).__name__}: {error}"
        )
        raise GroupDETRError(what, str(run.report), f"use the weights: {run.best}") from error
