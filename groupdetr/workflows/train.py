"""`groupdetr train`: from options to a plan, and from the plan to a trained detector."""

from __future__ import annotations

import dataclasses
import inspect
import json
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from html import escape
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Unpack

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn

from groupdetr.checkpoints.native import save
from groupdetr.data.records import TrainingData
from groupdetr.detectors.recipe import Recipe
from groupdetr.engine.accelerator import create_accelerator, environment, loader_workers
from groupdetr.engine.callbacks import Callback, check_callbacks
from groupdetr.engine.memory import is_out_of_memory
from groupdetr.engine.progress import (
    ProgressCallback,
    create_console,
    format_duration,
    format_percent,
)
from groupdetr.engine.run_folder import RunFolder, write_json, write_text
from groupdetr.engine.tensorboard import tensorboard_callback
from groupdetr.engine.trainer import Trainer
from groupdetr.errors import GroupDETRError, UsageError
from groupdetr.evaluation import coco, nuscenes
from groupdetr.evaluation.nan_json import none_to_nan
from groupdetr.experiments import Experiment
from groupdetr.groups import GROUP_ATTENTIONS, MATCHES
from groupdetr.modeling.backbones.registry import has_weights
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.modeling.group_chunks import require_independent_groups
from groupdetr.registry import experiment, load_object, loaded_plugins, recipe_to_dict
from groupdetr.settings import DEFAULT_MODEL, Settings, SettingsOptions
from groupdetr.structures.json_object import JsonObject
from groupdetr.tasks.registry import task_class
from groupdetr.tasks.result_formats import format_html
from groupdetr.tasks.training_config import TrainingConfig
from groupdetr.workflows.auto_memory import fit_to_memory, oom_hint
from groupdetr.workflows.detector_plan import DetectorPlan
from groupdetr.workflows.task_workflows import workflows_for

console = create_console()


@dataclass(frozen=True)
class TrainingResult:
    """The result of `train`. A notebook shows it as a table.

    >>> run = groupdetr.train("data/mine", model="dino-tiny", epochs=20)
    >>> detector = groupdetr.Detector(run.path)
    """

    path: Path  # the folder of the run
    groups: int  # K
    steps: int  # optimizer steps so far, those before a --resume included
    epochs: float  # passes over the training images so far
    seconds: float  # of training so far, without evaluations
    interrupted: bool = False  # True if Ctrl-C or SIGTERM stopped the training before its end

    @property
    def weights(self) -> Path:
        """The weights of the best evaluation, a .safetensors file."""
        return RunFolder(self.path).best

    @property
    def metrics(self) -> JsonObject:
        """The metrics of the best evaluation by name, such as "AP"; {} if there was none."""
        file = RunFolder(self.path).val / "metrics.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

    @property
    def exit_code(self) -> int:
        """0, or 130 as of any program that was interrupted."""
        return 130 if self.interrupted else 0

    def to_json(self) -> JsonObject:
        """Return what `groupdetr train --json` prints. Files that do not exist (yet) are None."""
        run = RunFolder(self.path)
        return {
            "run": str(self.path),
            "weights": str(run.best) if run.best.is_file() else None,
            "report": str(run.report) if run.report.is_file() else None,
            "groups": self.groups,
            "steps": self.steps,
            "epochs": self.epochs,
            "seconds": self.seconds,
            "interrupted": self.interrupted,
            "metrics": self.metrics,
        }

    def _repr_html_(self) -> str:
        """Return a table of K, the length and the best metrics, and links, for notebooks."""
        row = {
            "K": str(self.groups),
            "epochs": f"{self.epochs:.4g}",
            "training time": format_duration(self.seconds),
        }
        metrics = none_to_nan(self.metrics)
        for name in (*coco.METRICS[:6], *nuscenes.METRICS[:2]):
            if name in metrics:
                row[name] = format_percent(metrics[name])
        links = []
        for file in (RunFolder(self.path).report, self.weights):
            if file.is_file():
                links.append(f'<a href="{escape(file.as_posix())}">{escape(str(file))}</a>')
        stopped = "<p>The training was interrupted.</p>" if self.interrupted else ""
        return f"{format_html([row])}{stopped}<p>{'<br>'.join(links)}</p>"


def train(
    data: str | Path | None = None,
    *,
    model: str | None = None,
    images: str | Path | None = None,
    groups: int | Literal["auto"] | None = None,
    queries: int | None = None,
    backbone: str | None = None,
    set: Mapping[str, object] | None = None,
    weights: str | Path | None = None,
    pretrained_backbone: str | Path | None = None,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    check: bool | None = None,
    stop_after: int | None = None,
    callbacks: Sequence[Callback] = (),
    **settings: Unpack[SettingsOptions],
) -> TrainingResult:
    """Train a detector on a dataset, or resume a run, and return its folder and its metrics.

    The keywords are the options of `groupdetr train`, with the same defaults: those of ``model``,
    or of the run that is resumed. ``data`` is a folder or an annotation file with the folder
    ``images``. ``set`` has further fields of the model's recipe. ``settings`` are the fields of
    `Settings`, such as ``epochs`` and ``lr``. ``callbacks`` are called during the training, see
    `groupdetr.Callback`.

    `TypeError` for an unknown keyword or hook, `UsageError` for values that cannot be used,
    `DataError` for a dataset that cannot be trained on, and `CallbackError` if a callback fails.

    >>> run = groupdetr.train("data/mine", model="dino-tiny", groups=6, epochs=20)
    >>> run.metrics["AP"], run.path, run.weights
    """
    expect_known_keywords(settings)
    check_callbacks(callbacks)
    changes: dict[str, Any] = dict(settings)
    auto_batch = changes.get("batch") == "auto"
    if auto_batch:
        del changes["batch"]
    if resume is not None:
        config = TrainingConfig.from_run(Path(resume))
        if auto_batch:
            # Fit to the memory of this machine, whatever was chosen when the run began.
            changes = {"accumulate": 1, "group_chunk": None} | changes
    else:
        if data is None:
            raise UsageError("no dataset was given", remedy="pass data=..., or resume=RUN")
        name = model or DEFAULT_MODEL
        config = TrainingConfig.from_model(Path(data), name, experiment(name).settings)
    given: dict[str, Any] = {
        "data": Path(data) if data is not None else None,
        "images": Path(images) if images is not None else None,
        "model": model,
        "groups": groups,
        "queries": queries,
        "backbone": backbone,
        "set": (*config.set, *_assignments(set)) if set else None,
        "weights": Path(weights) if weights is not None else None,
        "pretrained_backbone": str(pretrained_backbone) if pretrained_backbone else None,
        "check": check,
    }
    config = replace(
        config,
        **{name: value for name, value in given.items() if value is not None},
        settings=replace(config.settings, **changes),
    )
    return run_training(
        config,
        out=Path(out) if out is not None else None,
        resume=Path(resume) if resume is not None else None,
        stop_after=stop_after,
        auto_batch=auto_batch,
        callbacks=callbacks,
    )


def expect_known_keywords(settings: Mapping[str, object]) -> None:
    """Raise `TypeError` for a keyword of `train` that does not exist, with the nearest name."""
    setting_names = [field.name for field in dataclasses.fields(Settings)]
    own_names = [name for name in inspect.signature(train).parameters if name != "settings"]
    for name in settings:
        if name not in setting_names:
            known = [*own_names, *setting_names]
            similar = get_close_matches(name, known, n=1)
            hint = f"did you mean {similar[0]!r}?" if similar else f"known: {', '.join(known)}"
            raise TypeError(f"train() has no keyword {name!r}; {hint}")


def _assignments(fields: Mapping[str, object]) -> list[str]:
    """Return fields of a recipe as name=value, as --set takes them."""
    assignments = []
    for name, value in fields.items():
        # A function of `groupdetr.groups` stands for its name.
        text = getattr(value, "__name__", "") if callable(value) else json.dumps(value)
        assignments.append(f"{name}={text}")
    return assignments


def train_command(
    *,
    data: Path | None,
    images: Path | None,
    model: str,
    groups: int | Literal["auto"] | None,
    queries: int | None,
    backbone: str | None,
    set: Sequence[str],
    weights: Path | None,
    pretrained_backbone: str,
    out: Path | None,
    resume: Path | None,
    check: bool,
    stop_after: int | None,
    callback: Sequence[str],
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
    config = TrainingConfig(
        data=data,
        images=images,
        model=model,
        groups=groups,
        queries=queries,
        backbone=backbone,
        set=tuple(set),
        weights=weights,
        pretrained_backbone=pretrained_backbone,
        check=check,
        settings=settings,
    )
    return run_training(
        config,
        out=out,
        resume=resume,
        stop_after=stop_after,
        auto_batch=auto_batch,
        callbacks=[create_callback(path) for path in callback],
    )


def create_callback(path: str) -> Callback:
    """Return an object of the class that ``--callback`` names."""
    callback_class = load_object(path)
    try:
        callback = callback_class()  # type: ignore[operator]
    except TypeError as error:
        raise UsageError(
            f"the callback cannot be created without arguments: {error}",
            path,
            "name a class without arguments, for example a subclass that sets them",
        ) from error
    try:
        check_callbacks([callback])
    except TypeError as error:
        raise UsageError(str(error), path, "docs/callbacks.md has the hooks") from error
    return callback


def run_training(
    config: TrainingConfig,
    *,
    out: Path | None,
    resume: Path | None,
    stop_after: int | None,
    auto_batch: bool,
    callbacks: Sequence[Callback] = (),
) -> TrainingResult:
    """Make the plan of a training, fit it to the memory if that was asked for, and run it."""
    if resume is not None and config.groups == "auto":
        raise UsageError(
            "--groups auto cannot be used with --resume, because a run keeps its number of groups",
            str(resume),
            "use --batch auto, which chooses everything else for the memory of this machine",
        )
    if resume is not None:
        out = out or resume
    plan = make_plan(config, out=out, resume=resume, stop_after=stop_after)
    if auto_batch or config.groups == "auto":
        plan = fit_to_memory(plan, may_reduce_groups=config.groups == "auto")
        # The default name of the folder has the K that is trained, which may be smaller now.
        plan = with_folder(plan, choose_folder(config, plan.recipe, out, plan.resumes))
    return run_plan(plan, callbacks)


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
        require_independent_groups(GROUP_ATTENTIONS[recipe.group_attention], MATCHES[recipe.match])
    dataset = read_data(config, chosen, recipe, accelerator, resumes=resume is not None)
    recipe = replace(recipe, num_classes=len(dataset.categories))
    workers = loader_workers(config.settings)
    task = task_class(chosen.task)(dataset, config.settings, recipe.num_detections, workers)
    run = choose_folder(config, recipe, out, resumes=resume is not None)
    return DetectorPlan(
        task=task,
        settings=config.settings,
        accelerator=accelerator,
        run=run,
        workers=workers,
        stop_after=stop_after,
        save_best=partial(save_best, run, dataset, config.settings),
        config=config,
        recipe=recipe,
        dataset=dataset,
        resumes=resume is not None,
        # Paths and shapes may have brackets, which rich would read as markup.
        log=partial(console.print, markup=False) if accelerator.is_main_process else _print_nothing,
    )


def save_best(
    run: RunFolder, dataset: TrainingData, settings: Settings, trained: nn.Module
) -> None:
    """Write best.safetensors: the weights, and everything that a `Detector` needs besides them."""
    assert isinstance(trained, DetectionTransformer)
    assert isinstance(trained.recipe, Recipe)
    metadata = {
        "recipe": recipe_to_dict(replace(trained.recipe, pretrained_backbone=False)),
        "categories": [[category.id, category.name] for category in dataset.categories],
        "imgsz": settings.imgsz,
    }
    save(trained, run.best, metadata)


def with_folder(plan: DetectorPlan, run: RunFolder) -> DetectorPlan:
    """Return the plan with another folder."""
    return replace(
        plan, run=run, save_best=partial(save_best, run, plan.dataset, plan.config.settings)
    )


def make_recipe(config: TrainingConfig, chosen: Experiment, resumes: bool) -> Recipe:
    """Return the recipe of the experiment with everything that the options change."""
    num_groups = chosen.recipe.num_groups
    if isinstance(config.groups, int):
        num_groups = config.groups
    fields: dict[str, object] = {
        "num_groups": num_groups,
        "recompute": config.settings.recompute,
        "pretrained_backbone": _pretrained_backbone(config, chosen.recipe, resumes),
    }
    if config.queries is not None:
        fields["num_queries"] = config.queries
    if config.backbone is not None:
        fields["backbone"] = config.backbone
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
        return has_weights(config.backbone or recipe.backbone) and config.weights is None
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


def run_plan(plan: DetectorPlan, callbacks: Sequence[Callback] = ()) -> TrainingResult:
    """Build the detector, train it, and write its page."""
    trainer = build_trainer(plan, callbacks)
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
        report = load_weights(model, plan.config.weights, new_head=True, class_names=class_names)
        plan.log("\n".join(report.lines))
    criterion = plan.recipe.criterion()
    trainer = Trainer(plan, model, criterion, callbacks)
    if plan.resumes:
        for name in trainer.resume():
            plan.log(
                f"this run was trained with the callback {name}, which is not among the callbacks "
                "now; it is left out, and its state is dropped"
            )
    if plan.is_main_process:
        trainer.callbacks.loggers.append(ProgressCallback(console))
        tensorboard = tensorboard_callback(plan.run.tensorboard, trainer.step)
        if tensorboard is not None:
            trainer.callbacks.loggers.append(tensorboard)
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
            trainer.write_checkpoint()
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
            f"stopped after step {progress.step}; "
            f"resume with: groupdetr train --resume {run.path}{plugin_flags()}"
        )
        return result_of(plan, trainer, interrupted=trainer.is_stopping)
    if trainer.is_finishing:
        plan.log(f"a callback finished the training after step {progress.step}")
    workflows = workflows_for(plan.task)
    if plan.is_main_process:
        write_page(plan, workflows.report)
    best = f"best {plan.task.metrics[0]} {100 * max(progress.best_ap, 0):.1f}"
    plan.log(f"{best}; weights: {run.best}; report: {run.report}")
    predict = f"groupdetr predict {run.path} {workflows.predict_argument}{plugin_flags()}"
    plan.log(f"next: {predict}, groupdetr val {run.path} --per-group{plugin_flags()}")
    return result_of(plan, trainer, interrupted=False)


def plugin_flags() -> str:
    """Return the options that a command needs to know the model, with a space in front."""
    return "".join(f" --plugin {name}" for name in loaded_plugins())


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
