"""From options to a run: check the data, build the detector, and train it in a folder of its own."""

from __future__ import annotations

import dataclasses
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from rich.console import Console
from torch import nn

from groupdetr.checkpoints.native import save
from groupdetr.cli.options.train import Options, to_config
from groupdetr.data.formats import DataSet
from groupdetr.data.nuscenes.version import NuScenes
from groupdetr.detectors.recipe import Recipe
from groupdetr.engine import tensorboard
from groupdetr.engine.accelerator import accelerator, environment, loader_workers
from groupdetr.engine.memory import ran_out
from groupdetr.engine.progress import ConsoleReporter, Silent
from groupdetr.engine.run_folder import RunFolder, write_json, write_text
from groupdetr.engine.task import Task
from groupdetr.engine.trainer import Trainer
from groupdetr.errors import GroupDETRError, UsageError
from groupdetr.experiments import experiment
from groupdetr.modeling.group_chunks import expect_independent_groups, learner
from groupdetr.settings import Settings
from groupdetr.weights.loading import load_weights
from groupdetr.workflows.auto_memory import fitted, remedy
from groupdetr.workflows.task_workflows import verbs_for

console = Console(highlight=False, soft_wrap=True)


def train(options: Options) -> Path:
    """Train to the end, or on from where a run stopped. Returns the run's folder."""
    if options.data is None:
        raise UsageError(
            "no data set given", remedy="groupdetr train DATA --model NAME, or --resume RUN"
        )
    recipe = recipe_of(options)
    machine = accelerator(options.settings)
    expect_whole_pieces(options.settings, machine.num_processes)
    if recipe.in_chunks(options.settings.group_chunk):
        expect_independent_groups(recipe.compete, recipe.match)
    say = console.print if machine.is_main_process else _silence
    data = checked(options, recipe, machine)
    recipe = replace(recipe, num_classes=len(data.categories))
    task = task_of(options, recipe, data)
    options = fitted(options, recipe, task, machine, say)
    recipe = replace(recipe_of(options), num_classes=len(data.categories))
    run = folder(options)
    trainer = build(options, recipe, data, task, run, machine)
    say(plan(options, recipe, trainer))
    start(trainer, options, data)
    trainer.reporter = ConsoleReporter(console) if machine.is_main_process else Silent()
    try:
        with trainer.reporter, stoppable(trainer):
            trainer.train()
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        step = trainer.state.progress.step + 1
        del trainer
        traceback.clear_frames(error.__traceback__)  # which hold what memory was for
        told = remedy(options, recipe, task, machine, run.path)
        raise UsageError(f"memory ran out at step {step}", str(run.path), told) from error
    finally:
        machine.end_training()
    finish(trainer, say)
    return run.path


def expect_whole_pieces(settings: Settings, processes: int) -> None:
    if settings.batch % (processes * settings.accumulate):
        pieces = f"{processes} processes x {settings.accumulate} pieces"
        raise UsageError(
            f"a batch of {settings.batch} images cannot be shared by {pieces}",
            remedy=f"choose --batch as a multiple of {processes * settings.accumulate}",
        )


@contextmanager
def stoppable(trainer: Trainer) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the training after the step under way, with a checkpoint; a second one ends it at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        del number, frame
        if trainer.stopped:
            raise KeyboardInterrupt
        trainer.stopped = True

    if threading.current_thread() is not threading.main_thread():  # where signals cannot be taken
        yield
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def recipe_of(options: Options) -> Recipe:
    """The model's recipe with all that the options change."""
    chosen = experiment(options.model)
    if options.resume is not None and options.groups == "auto":
        raise UsageError(
            "a run keeps its groups",
            str(options.resume),
            "--batch auto fits all else to the memory",
        )
    own = chosen.groups or chosen.recipe.num_groups
    groups = options.groups if isinstance(options.groups, int) else own
    values: dict[str, Any] = {"num_groups": groups, "recompute": options.settings.recompute}
    values |= {} if options.queries is None else {"num_queries": options.queries}
    values |= dict(map(_assignment, options.set))
    try:
        return chosen.recipe.with_options(
            **values, pretrained_backbone=_pretrained(options, chosen.recipe)
        )
    except (TypeError, ValueError) as error:
        raise UsageError(
            str(error), remedy="see --groups, --queries, --set and --pretrained-backbone"
        ) from error


def _pretrained(options: Options, recipe: Recipe) -> bool | str:
    choice = options.pretrained_backbone
    if choice == "none" or options.resume is not None:
        return False
    return recipe.backbone_weights and options.weights is None if choice == "auto" else choice


def _assignment(text: str) -> tuple[str, Any]:
    name, found, value = text.partition("=")
    if not found:
        raise UsageError(
            f"--set takes name=value, not {text!r}", remedy="for example --set dropout=0"
        )
    return name.strip(), yaml.safe_load(value)


def checked(options: Options, recipe: Recipe, machine: Accelerator) -> DataSet | NuScenes:
    """The data set, after the same check as `groupdetr check`; a run that is resumed was checked when it began."""
    assert options.data is not None
    task = experiment(options.model).task
    if not machine.is_main_process or options.resume is not None:
        return task.read(options.data, options.images)
    report = task.check(options.data, options.images, recipe.num_queries, options.check)
    if report.verdict != "ok":
        console.print(report.render(), markup=False)
    report.raise_for_errors()
    return report.dataset or task.read(options.data, options.images)


def folder(options: Options) -> RunFolder:
    """The run's folder, the same for all processes. A folder with a run in it is never written over."""
    groups = options.groups or experiment(options.model).groups or 1
    stamp = time.strftime("%Y%m%d-%H%M%S")
    name = f"{Path(options.data or '').stem}-{options.model.replace('/', '-')}-{groups}g-{stamp}"
    path = broadcast_object_list([str(options.out or Path("runs") / name)])[0]
    run = RunFolder(Path(path))
    if options.resume is None and run.config.exists():
        raise UsageError(
            "there is a run in this folder already",
            path,
            f"go on with it: --resume {path}, or choose another --out",
        )
    return run


def task_of(options: Options, recipe: Recipe, data: DataSet | NuScenes) -> Task:
    """What is trained for."""
    settings = options.settings
    task: Task = experiment(options.model).task(
        data, settings, recipe.num_detections, loader_workers(settings)
    )
    return task


def build(
    options: Options,
    recipe: Recipe,
    data: DataSet | NuScenes,
    task: Task,
    run: RunFolder,
    machine: Accelerator,
) -> Trainer:
    """The detector with its first weights, and the trainer that owns it."""
    settings = options.settings
    torch.manual_seed(settings.seed)
    model = recipe.build()
    categories = [[category.id, category.name] for category in data.categories]
    if options.weights is not None and options.resume is None:
        report = load_weights(
            model,
            options.weights,
            new_head=True,
            class_names=[category.name for category in data.categories],
        )
        if machine.is_main_process:
            console.print("\n".join(report.lines), markup=False)
    described = {"recipe": dataclasses.asdict(replace(model.recipe, pretrained_backbone=False))}
    metadata = {**described, "categories": categories, "imgsz": settings.imgsz}

    def save_best(best: nn.Module) -> None:
        save(best, run.best, metadata)

    criterion, workers = recipe.criterion(), loader_workers(settings)
    network = learner(model, criterion, settings.group_chunk)
    return Trainer(
        model,
        criterion,
        network,
        task,
        settings,
        run,
        machine,
        Silent(),
        workers,
        save_best,
        options.stop_after,
    )


def start(trainer: Trainer, options: Options, data: DataSet | NuScenes) -> None:
    """Write what the run is, or read how far it came."""
    run, machine = trainer.run, trainer.accelerator
    if options.resume is not None:
        trainer.state.load(run.last)
    if machine.is_main_process:
        run.path.joinpath("weights").mkdir(parents=True, exist_ok=True)
        run.mirror = tensorboard.mirror(run.path / "tensorboard", trainer.state.progress.step)
        write_json(run.environment, environment())
        write_json(run.data, data.card())
        if options.resume is None:
            trainer.save()  # before the configuration: where there is a run, there is something to resume
        else:
            run.clean()
            run.rewind(trainer.state.progress.step)
        recipe: Recipe = trainer.model.recipe  # type: ignore[assignment]
        config = to_config(options) | {
            "groups": recipe.num_groups,
            "set": [*options.set, *settled(options, recipe)],
        }
        write_text(run.config, yaml.safe_dump(config, sort_keys=False))
    machine.wait_for_everyone()


def settled(options: Options, recipe: Recipe) -> Iterator[str]:
    """What the weights that were loaded changed of the recipe, as --set has it: a resumed run does not load them."""
    asked, built = (dataclasses.asdict(x) for x in (recipe_of(options), recipe))
    for name in built.keys() - {"num_classes", "pretrained_backbone"}:
        if built[name] != asked[name]:
            yield f"{name}={built[name]}"


def plan(options: Options, recipe: Recipe, trainer: Trainer) -> str:
    """What is going to happen, in four lines."""
    settings, task = options.settings, trainer.task
    steps = f"{trainer.total} steps" if trainer.total else f"{settings.minutes:g} minutes"
    epochs = f"{settings.epochs:g} epochs = " if trainer.total and not settings.steps else ""
    count = sum(p.numel() for p in trainer.model.parameters())
    return "\n".join(
        [
            f"model   {options.model}: {count / 1e6:.2f} M parameters, {recipe.num_groups} groups of "
            f"{recipe.num_queries} queries, {recipe.num_classes} classes",
            f"data    {len(task.train)} training and {len(task.val)} validation images, shortest side {settings.imgsz}",
            f"plan    {epochs}{steps} of {settings.batch} images, "
            f"rate {settings.lr:g} (backbone {settings.backbone_lr:g})",
            f"where   {trainer.run.path} on {trainer.accelerator.device}, {trainer.workers} loader processes",
        ]
    )


def finish(trainer: Trainer, say: Any) -> None:
    """Say what came out, and what to type next."""
    progress, run = trainer.state.progress, trainer.run
    if trainer.stopped or (trainer.share() < 1 and progress.step == trainer.stop_after):
        trainer.save()
        say(f"stopped at step {progress.step}; go on with: groupdetr train --resume {run.path}")
        if trainer.stopped:
            raise KeyboardInterrupt
        return
    if trainer.accelerator.is_main_process:
        make_page(trainer)
    best = f"best {trainer.task.figures[0]} {100 * max(progress.best_ap, 0):.1f}"
    say(f"{best}; weights: {run.best}; look at {run.report}")
    predict = f"groupdetr predict {run.path} {verbs_for(trainer.task).asks}"
    say(f"next: {predict}, groupdetr val {run.path} --per-group")


def make_page(trainer: Trainer) -> None:
    """report.html. Whatever is wrong with it, the training is done, and who reads that it failed should know it."""
    run = trainer.run
    try:
        verbs_for(trainer.task).report(run)
    except Exception as error:
        what = (
            f"the training is done, but its page could not be made: {type(error).__name__}: {error}"
        )
        raise GroupDETRError(what, str(run.report), f"the weights are whole: {run.best}") from error


def _silence(*_: Any) -> None:
    pass
