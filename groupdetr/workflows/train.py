"""`groupdetr train`: from options to a plan, and from the plan to a trained detector."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Unpack

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn

from groupdetr.checkpoints import hub
from groupdetr.checkpoints.native import save
from groupdetr.console.output import create_console
from groupdetr.console.text import escape_html, file_name, quote
from groupdetr.data.fingerprint import differences
from groupdetr.data.layouts import DatasetSplits
from groupdetr.data.records import TrainingData
from groupdetr.detectors.recipe import Recipe
from groupdetr.engine.accelerator import create_accelerator, environment, loader_workers
from groupdetr.engine.callbacks import Callback, check_callbacks
from groupdetr.engine.memory import is_out_of_memory
from groupdetr.engine.optimizer import MAX_WARMUP
from groupdetr.engine.progress import (
    ProgressCallback,
    format_duration,
    format_percent,
)
from groupdetr.engine.run_folder import RunFolder, timestamp, write_json, write_text
from groupdetr.engine.run_lock import locked
from groupdetr.engine.tensorboard import tensorboard_callback
from groupdetr.engine.trainer import Trainer
from groupdetr.errors import CallbackError, DataError, GroupDETRError, UsageError
from groupdetr.evaluation import coco, nuscenes
from groupdetr.evaluation.nan_json import none_to_nan
from groupdetr.experiments import Experiment
from groupdetr.groups import GROUP_ATTENTIONS, MATCHES
from groupdetr.modeling.backbones.registry import NONE_FROZEN, can_load, has_weights
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.modeling.group_chunks import require_independent_groups
from groupdetr.registry import experiment, load_object, loaded_plugins, recipe_to_dict
from groupdetr.settings import DEFAULT_MODEL, Settings, SettingsOptions, option, with_changes
from groupdetr.structures.json_object import JsonObject
from groupdetr.tasks.registry import task_class
from groupdetr.tasks.result_formats import format_html
from groupdetr.tasks.training_config import TrainingConfig
from groupdetr.workflows.auto_memory import fit_to_memory, oom_hint
from groupdetr.workflows.detector_plan import DetectorPlan
from groupdetr.workflows.output_folder import expect_new_run
from groupdetr.workflows.task_workflows import workflows_for

console = create_console()

# How long after the first signal another one counts as the same request.
CTRL_C_SECONDS = 0.2
SIGTERM_SECONDS = 1.0
LAUNCHER_SECONDS = 3.0  # torchrun and others pass on a signal to their processes
# Parts of the messages of gloo and NCCL when another process is gone.
LOST_CONNECTION = ("onnection closed by peer", "onnection reset", "roken pipe", "NCCL error")

FEW_STEPS = 300  # a training with fewer steps is advised against, before it starts
# Fields of a recipe that --set cannot change: what decides them.
SET_BY_OTHERS = {
    "preset": "--model chooses the preset",
    "num_classes": "the dataset has the classes",
    "pretrained_backbone": "--pretrained-backbone chooses the weights",
    "recompute": "--recompute turns it on",
}
# Fields of a recipe that have an option of their own.
OWN_OPTIONS = {"num_groups": "groups", "num_queries": "queries", "backbone": "backbone"}
# Fields of a recipe that may change when a run is resumed, because its weights keep their meaning.
CHANGEABLE = (
    *("num_classes", "pretrained_backbone", "num_detections", "inference_group"),
    *("group_attention", "match", "dropout", "recompute", "frozen_stages", "num_denoising"),
    *("denoising_groups", "label_noise_ratio", "box_noise_scale", "denoise", "grid_mask"),
    "num_samples",
)


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
        file = RunFolder(self.path).best_metrics
        if not file.is_file():
            return {}
        try:
            return dict(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, RecursionError, TypeError, ValueError) as error:
            raise UsageError(
                f"the metrics of the best evaluation cannot be read: {error}",
                str(file),
                f"evaluate the run again: groupdetr val {quote(self.path)}",
            ) from error

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
                links.append(f'<a href="{escape_html(file.as_posix())}">{escape_html(file)}</a>')
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
        settings=with_changes(config.settings, changes),
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
    if stop_after is not None and stop_after < 1:
        raise UsageError(f"stop-after must be at least 1, not {stop_after}")
    for name in ("backbone", "pretrained_backbone"):
        if getattr(config, name) == "":
            raise UsageError(f"{option(name)} must be a name, not an empty text")
    if resume is not None and config.groups == "auto":
        raise UsageError(
            "--groups auto cannot be used with --resume, because a run keeps its number of groups",
            str(resume),
            "use --batch auto, which chooses everything else for the memory of this machine",
        )
    if resume is not None:
        config = resumed_config(config, resume, out)
        out = resume
    elif config.weights is not None and (named := hub.model_named(config.weights)) is not None:
        hub.download(named)  # Before the data are read, which may take minutes.
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
    if resume is not None:
        expect_same_data(RunFolder(resume), dataset)
    recipe = replace(recipe, num_classes=len(dataset.categories))
    workers = loader_workers(config.settings)
    task = task_class(chosen.task)(dataset, config.settings, recipe.num_detections, workers)
    run = choose_folder(config, recipe, out, resumes=resume is not None)
    if resume is None:
        expect_new_run(run, dataset.metadata())
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
        log=console.print if accelerator.is_main_process else _print_nothing,
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
        if name in SET_BY_OTHERS:
            raise UsageError(
                f"--set cannot change {name}", remedy=f"leave it out: {SET_BY_OTHERS[name]}"
            )
        is_given_twice = name in OWN_OPTIONS and getattr(config, OWN_OPTIONS[name]) is not None
        if is_given_twice and fields[name] != value:
            flag = f"--{OWN_OPTIONS[name]}"
            raise UsageError(f"{flag} and --set {name} differ", remedy=f"give only {flag}")
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
    try:
        return name.strip(), yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        what = f"the value of --set {name.strip()} cannot be read: {value!r}"
        raise UsageError(what, remedy="write a value of YAML, such as 0.1, true or name") from error


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
    report = task.check(config.data, config.images, recipe.queries_of_a_group, config.check)
    if report.verdict != "ok":
        console.print(report.render())
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
    name = f"{data_name}-{model_name}-{recipe.num_groups}g"
    default = Path("runs") / f"{file_name(name)}-{timestamp}"
    path = broadcast_object_list([str(out or default)])[0]
    run = RunFolder(Path(path))
    if not resumes:
        expect_no_run(run)
    return run


def expect_no_run(run: RunFolder) -> None:
    """Raise `UsageError` if there is a run in this folder."""
    if run.config.exists():
        raise UsageError(
            "this folder already has a run in it",
            str(run.path),
            f"resume it with --resume {quote(run.path)}, or choose another --out",
        )


def _print_nothing(*_: object) -> None:
    """Print nothing. All processes but the main one use it instead of print."""


# resume


def resumed_config(config: TrainingConfig, resume: Path, out: Path | None) -> TrainingConfig:
    """Return the configuration of a run that is resumed with the options of ``config``.

    `UsageError` for options that cannot take effect any more.
    """
    if out is not None and not _is_same_path(out, resume):
        raise UsageError(
            "a run that is resumed stays in its folder, and --out is another one",
            str(out),
            f"leave out --out; to continue in a copy, copy the folder {resume} first",
        )
    recorded = TrainingConfig.from_run(resume)
    if config.set[: len(recorded.set)] != recorded.set:
        # On the command line, --set replaces its default.
        config = replace(config, set=(*recorded.set, *config.set))
    if config.model != recorded.model:
        raise _fixed("--model", recorded.model, resume)
    for name in ("weights", "pretrained_backbone"):
        if getattr(config, name) != getattr(recorded, name):
            raise UsageError(
                f"--{option(name)} has no effect on a run that is resumed, because its weights are "
                "those of its last checkpoint",
                str(resume),
                f"leave out --{option(name)}, or start a new run with it",
            )
    if config.check and not recorded.check:
        raise UsageError(
            "the images of a run are checked before its first step only, not when it is resumed",
            str(resume),
            "leave out the check; groupdetr check DATA checks them",
        )
    chosen = experiment(config.model)
    before = dataclasses.asdict(make_recipe(recorded, chosen, resumes=True))
    now = dataclasses.asdict(make_recipe(config, chosen, resumes=True))
    for name, value in before.items():
        if name not in CHANGEABLE and now[name] != value:
            flag = f"--{OWN_OPTIONS[name]}" if name in OWN_OPTIONS else f"--set {name}"
            raise _fixed(flag, value, resume)
    return config


def _fixed(flag: str, value: object, resume: Path) -> UsageError:
    """Return the error for an option that a run keeps."""
    run = RunFolder(resume)
    return UsageError(
        f"{flag} cannot change when a run is resumed; it was {value!r}",
        str(run.last),
        f"leave out {flag}, or start a new run from these weights: --weights {quote(resume)}",
    )


def _is_same_path(a: Path, b: Path) -> bool:
    return a.resolve() == b.resolve()


def expect_same_data(run: RunFolder, dataset: TrainingData) -> None:
    """Raise `DataError` if the data of a run that is resumed have changed since it began.

    `UsageError` if what it recorded of them cannot be read.
    """
    remedy = f"restore the data, or start a new run from these weights: --weights {quote(run.path)}"
    try:
        recorded = json.loads(run.data.read_text(encoding="utf-8"))["fingerprint"]
        changes = differences(recorded, dataset.fingerprint())
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(
            "what this run recorded of its data cannot be read, so nobody knows whether they have "
            "changed",
            str(run.data),
            "restore this file from a copy, or start a new run from these weights: "
            f"--weights {quote(run.path)}",
        ) from error
    if changes:
        raise DataError(
            "the data have changed since this run began: " + "; ".join(changes),
            str(dataset.metadata()["root"]),
            remedy,
        )


def expect_steps_left(plan: DetectorPlan, trainer: Trainer) -> None:
    """Raise `UsageError` if the options end a training before the step that it has reached."""
    step = trainer.step
    if plan.stop_after is not None and plan.stop_after <= step:
        raise UsageError(
            f"--stop-after {plan.stop_after} is over: this run has taken {step} steps",
            str(plan.run.path),
            f"choose more than {step}, or leave it out",
        )
    total = trainer.total_steps
    if total is not None and total < step:
        raise UsageError(
            f"this run has taken {step} steps, and with these options it would have ended after "
            f"{total}",
            str(plan.run.path),
            f"choose more: --steps {step} or more, or more --epochs",
        )


# the training


def run_plan(plan: DetectorPlan, callbacks: Sequence[Callback] = ()) -> TrainingResult:
    """Build the detector, train it, and write its page, while no other process uses the folder."""
    with locked(plan.run) if plan.is_main_process else nullcontext():
        if plan.is_main_process and not plan.resumes:
            # Another process may have written a run since the folder was chosen.
            expect_no_run(plan.run)
        return _run_plan(plan, callbacks)


def _run_plan(plan: DetectorPlan, callbacks: Sequence[Callback]) -> TrainingResult:
    trainer = build_trainer(plan, callbacks)
    plan.log(describe(plan, trainer.model))
    for line in advice(plan):
        plan.log(line)
    prepare_run(plan, trainer)
    try:
        with stop_on_signals(trainer):
            trainer.train()
    except CallbackError:
        raise
    except Exception as error:
        # The remedy of other errors does not say how to go on.
        if trainer.saved_step is not None:
            plan.log(f"the last checkpoint is of step {trainer.saved_step}; {resume_command(plan)}")
        if is_lost_connection(error) and plan.num_processes > 1:
            raise GroupDETRError(
                "another process of this training has ended",
                str(plan.run.path),
                "its own message says why; then resume this run",
            ) from error
        if not isinstance(error, RuntimeError | MemoryError) or not is_out_of_memory(error):
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
        commands = run.commands() if plan.resumes else []
        machine = environment()
        command = {"time": timestamp(), "step": trainer.step, "command": machine["command"]}
        write_json(run.environment, {**machine, "commands": [*commands, command]})
        data = {**plan.dataset.metadata(), "fingerprint": plan.dataset.fingerprint()}
        write_json(run.data, data)
        if plan.resumes:
            run.rewind(trainer.step, trainer.state.progress.evaluation_due)
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
    held_out = isinstance(plan.dataset, DatasetSplits) and plan.dataset.held_out
    remark = " that were held out of train" if held_out else ""
    return "\n".join(
        [
            f"model   {plan.config.model}: {parameters / 1e6:.2f} M parameters, "
            f"{recipe.num_groups} groups of {recipe.num_queries} queries, "
            f"{recipe.num_classes} classes",
            f"data    {len(task.train)} training and {len(task.val)} validation {samples}{remark}, "
            f"{side} {settings.imgsz}",
            f"plan    {length} of {settings.batch} images, "
            f"learning rate {settings.lr:g} (backbone {settings.backbone_lr:g}), "
            f"on {plan.accelerator.device}, loader processes: {plan.workers}",
            f"output  {plan.run.path}",
        ]
    )


def advice(plan: DetectorPlan) -> list[str]:
    """Return lines of advice for a new training, which are printed first.

    They are about random stages that are not trained, and about a training that is too short.
    """
    if plan.resumes:
        return []
    lines = []
    recipe = plan.recipe
    is_random = not recipe.pretrained_backbone and plan.config.weights is None
    if is_random and recipe.frozen_stages > NONE_FROZEN:
        remedy = "train all layers with --set frozen_stages=-1"
        if can_load(recipe.backbone):
            source = "auto" if has_weights(recipe.backbone) else "FILE"
            remedy += f", or use --pretrained-backbone {source}"
        lines.append(
            f"note    the backbone has random weights, and frozen_stages={recipe.frozen_stages} "
            f"keeps those of its first layers; {remedy}"
        )
    total = plan.total_steps
    if total is None:
        return lines
    settings = plan.settings
    if settings.warmup > total * MAX_WARMUP:
        lines.append(
            f"note    the warm-up of {settings.warmup} steps is longer than a third of the "
            f"training; the learning rate is reached after {math.ceil(total * MAX_WARMUP)} steps"
        )
    if total < FEW_STEPS:
        epochs = math.ceil(FEW_STEPS * settings.batch / len(plan.task.train))
        more = f"--steps {FEW_STEPS}" if settings.steps else f"--epochs {epochs}"
        lines.append(
            f"note    {total} steps teach a detector little; give it more with {more}"
            + (", or with a smaller --batch" if settings.batch > 2 and not settings.steps else "")
        )
    return lines


def finish(plan: DetectorPlan, trainer: Trainer) -> TrainingResult:
    """Write the page of the run, and print the best metric and the next commands."""
    run = plan.run
    progress = trainer.state.progress
    if trainer.stopped_early():
        plan.log(f"stopped after step {progress.step}; {resume_command(plan)}")
        return result_of(plan, trainer, interrupted=trainer.is_stopping)
    if trainer.is_finishing:
        plan.log(f"a callback finished the training after step {progress.step}")
    workflows = workflows_for(plan.task)
    if plan.is_main_process:
        write_page(plan, workflows.report)
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
