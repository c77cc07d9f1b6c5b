"""`groupdetr train`: from options to a plan, and from the plan to a trained detector."""

from __future__ import annotations

import dataclasses
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Literal

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from rich.console import Console
from torch import nn

from groupdetr.checkpoints.native import save
from groupdetr.data.records import TrainingData
from groupdetr.detectors.recipe import Recipe
from groupdetr.engine.accelerator import create_accelerator, environment, loader_workers
from groupdetr.engine.callbacks import Callback
from groupdetr.engine.memory import is_out_of_memory
from groupdetr.engine.progress import ProgressCallback
from groupdetr.engine.run_folder import RunFolder, write_json, write_text
from groupdetr.engine.tensorboard import tensorboard_callback
from groupdetr.engine.trainer import Trainer
from groupdetr.errors import GroupDETRError, UsageError
from groupdetr.experiments import Experiment, experiment
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.modeling.group_chunks import require_independent_groups
from groupdetr.settings import Settings
from groupdetr.tasks.registry import task_class
from groupdetr.workflows.auto_memory import fit_to_memory, oom_hint
from groupdetr.workflows.detector_plan import DetectorPlan, TrainingConfig
from groupdetr.workflows.task_workflows import workflows_for

console = Console(highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class TrainingResult:
    """The result of `train`: the folder of the run and the exit code."""

    path: Path  # the folder of the run
    interrupted: bool  # True if Ctrl-C or SIGTERM stopped it before its end

    @property
    def exit_code(self) -> int:
        """0, or 130 as of any program that was interrupted."""
        return 130 if self.interrupted else 0


def train(
    *,
    data: Path | None,
    images: Path | None,
    model: str,
    groups: int | Literal["auto"] | None,
    queries: int | None,
    set: Sequence[str],
    weights: Path | None,
    pretrained_backbone: str,
    out: Path | None,
    resume: Path | None,
    check: bool,
    stop_after: int | None,
    auto_batch: bool,
    settings: Settings,
) -> TrainingResult:
    """Train a detector, or resume a run.

    The arguments are the options of `groupdetr train`. ``auto_batch`` is True for ``--batch auto``.
    """
    if data is None:
        raise UsageError(
            "no dataset was given",
            remedy="groupdetr train DATA --model NAME, or --resume RUN",
        )
    if resume is not None and groups == "auto":
        raise UsageError(
            "--groups auto cannot be used with --resume, because a run keeps its number of groups",
            str(resume),
            "use --batch auto, which chooses everything else for the memory of this machine",
        )
    config = TrainingConfig(
        data,
        images,
        model,
        groups,
        queries,
        tuple(set),
        weights,
        pretrained_backbone,
        check,
        settings,
    )
    plan = make_plan(config, out=out, resume=resume, stop_after=stop_after)
    if auto_batch or groups == "auto":
        plan = fit_to_memory(plan, may_reduce_groups=groups == "auto")
    return run_plan(plan)


# the plan


def make_plan(
    config: TrainingConfig, *, out: Path | None, resume: Path | None, stop_after: int | None
) -> DetectorPlan:
    """Decide everything before the first step: recipe, data, task, processes, folder."""
    chosen = experiment(config.model)
    recipe = make_recipe(config, chosen, resumes=resume is not None)
    accelerator = create_accelerator(config.settings)
    expect_equal_micro_batches(config.settings, accelerator.num_processes)
    if recipe.needs_chunks(config.settings.group_chunk):
        require_independent_groups(recipe.group_attention, recipe.match)
    dataset = read_data(config, chosen, recipe, accelerator, resumes=resume is not None)
    recipe = replace(recipe, num_classes=len(dataset.categories))
    workers = loader_workers(config.settings)
    task = task_class(chosen.task)(dataset, config.settings, recipe.num_detections, workers)
    run = choose_folder(config, recipe, out, resumes=resume is not None)
    categories = [[category.id, category.name] for category in dataset.categories]

    def save_best(trained: nn.Module) -> None:
        assert isinstance(trained, DetectionTransformer)
        assert isinstance(trained.recipe, Recipe)
        described = dataclasses.asdict(replace(trained.recipe, pretrained_backbone=False))
        metadata = {
            "recipe": described,
            "categories": categories,
            "imgsz": config.settings.imgsz,
        }
        save(trained, run.best, metadata)

    return DetectorPlan(
        task=task,
        settings=config.settings,
        accelerator=accelerator,
        run=run,
        workers=workers,
        stop_after=stop_after,
        save_best=save_best,
        config=config,
        recipe=recipe,
        dataset=dataset,
        resumes=resume is not None,
        # Paths and shapes may have brackets, which rich would read as markup.
        log=partial(console.print, markup=False) if accelerator.is_main_process else _print_nothing,
    )


def make_recipe(config: TrainingConfig, chosen: Experiment, resumes: bool) -> Recipe:
    """Return the recipe of the experiment with everything that the options change."""
    num_groups = chosen.groups or chosen.recipe.num_groups
    if isinstance(config.groups, int):
        num_groups = config.groups
    fields: dict[str, object] = {
        "num_groups": num_groups,
        "recompute": config.settings.recompute,
        "pretrained_backbone": _pretrained_backbone(config, chosen.recipe, resumes),
    }
    if config.queries is not None:
        fields["num_queries"] = config.queries
    for assignment in config.set:
        name, value = _parse_assignment(assignment)
        fields[name] = value
    try:
        return chosen.recipe.with_options(**fields)
    except (TypeError, ValueError) as error:
        remedy = "see --groups, --queries, --set and --pretrained-backbone"
        raise UsageError(str(error), remedy=remedy) from error


def _pretrained_backbone(config: TrainingConfig, recipe: Recipe, resumes: bool) -> bool | str:
    """Return False, True for weights from the hub, or the path of a file."""
    choice = config.pretrained_backbone
    if choice == "none" or resumes:
        return False
    if choice == "auto":
        return recipe.has_backbone_weights and config.weights is None
    return choice


def _parse_assignment(text: str) -> tuple[str, object]:
    """Parse name=value of --set. The value is YAML."""
    name, separator, value = text.partition("=")
    if not separator:
        raise UsageError(
            f"--set takes name=value, not {text!r}", remedy="for example --set dropout=0"
        )
    return name.strip(), yaml.safe_load(value)


def expect_equal_micro_batches(settings: Settings, processes: int) -> None:
    """Raise `UsageError` unless a batch is divided into micro-batches of one size."""
    micro_batches = processes * settings.accumulate
    if settings.batch % micro_batches:
        raise UsageError(
            f"a batch of {settings.batch} images cannot be divided equally among "
            f"{processes} processes x {settings.accumulate} micro-batches",
            remedy=f"choose --batch as a multiple of {micro_batches}",
        )


def read_data(
    config: TrainingConfig,
    chosen: Experiment,
    recipe: Recipe,
    accelerator: Accelerator,
    resumes: bool,
) -> TrainingData:
    """Read the dataset. Before a new run, the main process checks it like `groupdetr check`.

    The data of a run that is resumed were checked before its first step.
    """
    assert config.data is not None
    task = task_class(chosen.task)
    if not accelerator.is_main_process or resumes:
        return task.read(config.data, config.images)
    report = task.check(config.data, config.images, recipe.num_queries, config.check)
    if report.verdict != "ok":
        console.print(report.render(), markup=False)
    report.raise_for_errors()
    return report.dataset or task.read(config.data, config.images)


def choose_folder(
    config: TrainingConfig, recipe: Recipe, out: Path | None, resumes: bool
) -> RunFolder:
    """Return the folder of the run, the same in all processes.

    A folder that already has a run in it is refused.
    """
    timestamp = time.strftime("%Y%m%d-%H%M%S")
    data_name = Path(config.data or "").stem
    model_name = config.model.replace("/", "-")
    default = Path("runs") / f"{data_name}-{model_name}-{recipe.num_groups}g-{timestamp}"
    path = broadcast_object_list([str(out or default)])[0]
    run = RunFolder(Path(path))
    if not resumes and run.config.exists():
        raise UsageError(
            "this folder already has a run in it",
            path,
            f"resume it with --resume {path}, or choose another --out",
        )
    return run


def _print_nothing(*_: object) -> None:
    """Print nothing. All processes but the main one use it instead of print."""


# the training


def run_plan(plan: DetectorPlan) -> TrainingResult:
    """Build the detector, train it, and write its page."""
    trainer = build_trainer(plan)
    plan.log(describe(plan, trainer.model))
    prepare_run(plan, trainer)
    try:
        with stop_on_signals(trainer):
            trainer.train()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        step = trainer.state.progress.step + 1
        # Free what the failed step holds, before a hint is measured.
        del trainer
        traceback.clear_frames(error.__traceback__)
        hint = oom_hint(plan)
        raise UsageError(f"memory ran out at step {step}", str(plan.run.path), hint) from error
    finally:
        plan.accelerator.end_training()
    return finish(plan, trainer)


def build_trainer(plan: DetectorPlan) -> Trainer:
    """Build the detector with its first weights, or with those of the run that is resumed."""
    torch.manual_seed(plan.settings.seed)
    model = plan.recipe.build()
    if plan.config.weights is not None and not plan.resumes:
        # Imported here: the importers of all published checkpoints take time.
        from groupdetr.weights.loading import load_weights

        class_names = [category.name for category in plan.dataset.categories]
        report = load_weights(model, plan.config.weights, new_head=True, class_names=class_names)
        plan.log("\n".join(report.lines))
    criterion = plan.recipe.criterion()
    trainer = Trainer(plan, model, criterion)
    if plan.resumes:
        trainer.state.load(plan.run.last)
    if plan.is_main_process:
        callbacks: list[Callback | None] = [
            ProgressCallback(console),
            tensorboard_callback(plan.run.tensorboard, trainer.state.progress.step),
        ]
        trainer.callbacks.callbacks += [callback for callback in callbacks if callback is not None]
    return trainer


def prepare_run(plan: DetectorPlan, trainer: Trainer) -> None:
    """Write the files that describe the run, and its first checkpoint.

    The files are those of the environment, the data and the configuration.
    """
    run = plan.run
    if plan.is_main_process:
        run.path.joinpath("weights").mkdir(parents=True, exist_ok=True)
        write_json(run.environment, environment())
        write_json(run.data, plan.dataset.metadata())
        if plan.resumes:
            run.clean()
            run.rewind(trainer.state.progress.step)
        else:
            # The checkpoint is written before the configuration, because a folder with a
            # configuration counts as a run, and every run can be resumed.
            trainer.save()
        recipe = trainer.model.recipe
        assert isinstance(recipe, Recipe)
        config = plan.config.to_yaml(recipe, plan.recipe, plan.settings)
        write_text(run.config, yaml.safe_dump(config, sort_keys=False))
    plan.accelerator.wait_for_everyone()


@contextmanager
def stop_on_signals(trainer: Trainer) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the training after the current step, with a checkpoint.

    A second signal ends it at once.
    """

    def stop(_number: int, _frame: FrameType | None) -> None:
        if trainer.stop_requested:
            raise KeyboardInterrupt
        trainer.request_stop()

    if threading.current_thread() is not threading.main_thread():
        # Only the main thread can handle signals.
        yield
        return
    former = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def describe(plan: DetectorPlan, model: nn.Module) -> str:
    """Return a description of the training in four lines: model, data, plan and output."""
    settings = plan.settings
    recipe = plan.recipe
    task = plan.task
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if plan.total_steps is None:
        length = f"{settings.minutes:g} minutes"
    elif settings.steps:
        length = f"{plan.total_steps} steps"
    else:
        length = f"{settings.epochs:g} epochs = {plan.total_steps} steps"
    # Images of scenes are resized to a height, all others to a shortest side.
    if task.input_kind == "scenes":
        samples = "samples"
        side = "image height"
    else:
        samples = "images"
        side = "shortest side"
    return "\n".join(
        [
            f"model   {plan.config.model}: {parameters / 1e6:.2f} M parameters, "
            f"{recipe.num_groups} groups of {recipe.num_queries} queries, "
            f"{recipe.num_classes} classes",
            f"data    {len(task.train)} training and {len(task.val)} validation {samples}, "
            f"{side} {settings.imgsz}",
            f"plan    {length} of {settings.batch} images, "
            f"learning rate {settings.lr:g} (backbone {settings.backbone_lr:g}), "
            f"on {plan.accelerator.device}, loader processes: {plan.workers}",
            f"output  {plan.run.path}",
        ]
    )


def finish(plan: DetectorPlan, trainer: Trainer) -> TrainingResult:
    """Write the page of the run, and print the best metric and the next commands."""
    run = plan.run
    progress = trainer.state.progress
    if trainer.stopped_early():
        plan.log(
            f"stopped after step {progress.step}; resume with: groupdetr train --resume {run.path}"
        )
        return TrainingResult(run.path, interrupted=trainer.stop_requested)
    workflows = workflows_for(plan.task)
    if plan.is_main_process:
        write_page(plan, workflows.report)
    best = f"best {plan.task.metrics[0]} {100 * max(progress.best_ap, 0):.1f}"
    plan.log(f"{best}; weights: {run.best}; report: {run.report}")
    predict = f"groupdetr predict {run.path} {workflows.predict_argument}"
    plan.log(f"next: {predict}, groupdetr val {run.path} --per-group")
    return TrainingResult(run.path, interrupted=False)


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
