"""Everything about a training that is decided before its first step: the plan."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from groupdetr.checkpoints.native import save_state
from groupdetr.console.output import create_console
from groupdetr.console.text import file_name, quote
from groupdetr.data.dataset import DetectionDataset
from groupdetr.data.paths import dataset_name
from groupdetr.data.records import TrainingData
from groupdetr.data.transforms import val_transform
from groupdetr.detectors.recipe import Recipe
from groupdetr.engine.accelerator import create_accelerator, loader_workers
from groupdetr.engine.feature_cache import LEAVE_OUT, different_sizes
from groupdetr.engine.run_folder import RunFolder
from groupdetr.engine.task import Task
from groupdetr.engine.trackers import expect_trackers
from groupdetr.errors import UsageError
from groupdetr.experiments.experiment import Experiment
from groupdetr.groups import GROUP_ATTENTIONS, MATCHES
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.modeling.group_chunks import require_independent_groups
from groupdetr.registry import experiment, recipe_to_dict
from groupdetr.settings import (
    Settings,
)
from groupdetr.tasks.detection2d.task import DetectionTask
from groupdetr.tasks.input_shape import input_shape
from groupdetr.tasks.registry import task_class
from groupdetr.tasks.training_config import TrainingConfig
from groupdetr.workflows.detector_plan import DetectorPlan
from groupdetr.workflows.output_folder import expect_new_run
from groupdetr.workflows.recipe_options import expect_fitting_groups, make_recipe
from groupdetr.workflows.resume import expect_same_data

console = create_console()


def make_plan(
    config: TrainingConfig,
    *,
    out: Path | None,
    resume: Path | None,
    stop_after: int | None,
    cache: bool,
    transform: nn.Module | None = None,
) -> DetectorPlan:
    """Decide everything before the first step: recipe, data, task, processes, folder.

    ``cache`` as in `groupdetr.data.layouts.load`.
    """
    expect_trackers(config.log_with)
    chosen = experiment(config.model)
    recipe = make_recipe(config, chosen, resumes=resume is not None)
    accelerator = create_accelerator(config.settings)
    expect_equal_micro_batches(config.settings, accelerator.num_processes)
    expect_processes_to_shard(config.settings, accelerator.num_processes)
    if recipe.needs_chunks(config.settings.group_chunk):
        require_independent_groups(GROUP_ATTENTIONS[recipe.group_attention], MATCHES[recipe.match])
    expect_fitting_groups(recipe, config.settings)
    dataset = read_data(config, chosen, recipe, accelerator, resume is not None, cache)
    if resume is not None:
        expect_same_data(RunFolder(resume), dataset)
    recipe = replace(recipe, num_classes=len(dataset.categories))
    workers = loader_workers(config.settings.workers)
    task = task_class(chosen.task)(
        dataset, config.settings, recipe.num_detections, workers, input_shape(recipe)
    )
    if transform is not None:
        if not isinstance(task, DetectionTask):
            raise UsageError(
                f"a transform is for images, and {config.model} is trained on scenes",
                remedy="leave out transform",
            )
        # Imported here, because it imports torchvision.
        from groupdetr.data.own_transform import OwnTransform

        task.train.own_transform = OwnTransform(transform)
    expect_cacheable(config.settings, task, accelerator)
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
    run: RunFolder,
    dataset: TrainingData,
    settings: Settings,
    trained: nn.Module,
    weights: Mapping[str, Tensor],
) -> None:
    """Write best.safetensors: the weights, and everything that a `Detector` needs besides them.

    ``weights`` are the `unique_state` of the model ``trained``.
    """
    assert isinstance(trained, DetectionTransformer)
    assert isinstance(trained.recipe, Recipe)
    metadata = {
        "recipe": recipe_to_dict(replace(trained.recipe, pretrained_backbone=False)),
        "categories": [[category.id, category.name] for category in dataset.categories],
        "imgsz": settings.imgsz,
    }
    save_state(weights, run.best, metadata)


def with_folder(plan: DetectorPlan, run: RunFolder) -> DetectorPlan:
    """Return the plan with another folder."""
    return replace(
        plan, run=run, save_best=partial(save_best, run, plan.dataset, plan.config.settings)
    )


def expect_equal_micro_batches(settings: Settings, processes: int) -> None:
    """Raise `UsageError` unless a batch is divided into micro-batches of one size."""
    micro_batches = processes * settings.accumulate
    if settings.batch % micro_batches:
        raise UsageError(
            f"a batch of {settings.batch} images cannot be divided equally among "
            f"{processes} processes x {settings.accumulate} micro-batches",
            remedy=f"choose --batch as a multiple of {micro_batches}",
        )


def expect_processes_to_shard(settings: Settings, processes: int) -> None:
    """Raise `UsageError` if parameters are to be sharded, and there is one process only."""
    if settings.fsdp and processes == 1:
        raise UsageError(
            "--fsdp divides the parameters over several processes, and one trains",
            remedy="start one for each GPU, torchrun --nproc-per-node 8 -m groupdetr train ..., "
            "or turn it off with --no-fsdp",
        )


def read_data(
    config: TrainingConfig,
    chosen: Experiment,
    recipe: Recipe,
    accelerator: Accelerator,
    resumes: bool,
    cache: bool,
) -> TrainingData:
    """Read the dataset. Before a new run, the main process checks it like `groupdetr check`.

    The data of a run that is resumed were checked before its first step.
    """
    assert config.data is not None
    task = task_class(chosen.task)
    if not accelerator.is_main_process or resumes:
        return task.read(config.data, config.images, cache)
    report = task.check(config.data, config.images, recipe.queries_of_a_group, config.check, cache)
    if report.verdict != "ok":
        console.print(report.render())
    report.raise_for_errors()
    return report.dataset or task.read(config.data, config.images, cache)


def expect_cacheable(settings: Settings, task: Task[Any], accelerator: Accelerator) -> None:
    """Raise `UsageError` unless the features of the training images can be cached, if they are."""
    if not settings.cache_features:
        return
    if accelerator.num_processes > 1:
        raise UsageError(
            "--cache-features is for one process, and several train",
            remedy=f"{LEAVE_OUT}, or start one process",
        )
    train = task.train
    if not isinstance(train, DetectionDataset):
        raise UsageError(
            "--cache-features is for images, and this model detects objects in scenes",
            remedy=LEAVE_OUT,
        )
    if settings.multi_scale != "off":
        raise UsageError(
            f"--multi-scale {settings.multi_scale} changes the size of images, so their features "
            "cannot be cached",
            remedy=f"choose --multi-scale off, or {LEAVE_OUT}",
        )
    if train.own_transform is not None:
        raise UsageError(
            "the transform of your own may draw random numbers, so features cannot be cached",
            remedy=f"leave out the transform, or {LEAVE_OUT}",
        )
    assert isinstance(task, DetectionTask)
    resize = val_transform(settings.imgsz, task.shape)
    sizes = set()
    for record in train.records:
        image = (record.height, record.width)
        sizes.add(resize.size(*image, torch.Generator()))
    if len(sizes) > 1:
        raise different_sizes()


def choose_folder(
    config: TrainingConfig, recipe: Recipe, out: Path | None, resumes: bool
) -> RunFolder:
    """Return the folder of the run, the same in all processes.

    A folder that already has a run in it is refused.
    """
    timestamp = time.strftime("%Y%m%d-%H%M%S")
    assert config.data is not None
    model_name = config.model.replace("/", "-")
    name = f"{dataset_name(config.data)}-{model_name}-{recipe.num_groups}g"
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
