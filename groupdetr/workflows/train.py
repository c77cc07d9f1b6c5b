"""`groupdetr train`: from options to a plan, and from the plan to a trained detector."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Unpack

from torch import nn

from groupdetr.checkpoints import hub
from groupdetr.engine.accelerator import restore_threads
from groupdetr.engine.callback_checks import check_callbacks
from groupdetr.engine.callbacks import Callback
from groupdetr.errors import UsageError
from groupdetr.registry import experiment, load_object
from groupdetr.settings import (
    DEFAULT_MODEL,
    PARTS,
    Part,
    Settings,
    SettingsOptions,
    option,
    with_changes,
)
from groupdetr.tasks.training_config import TrainingConfig
from groupdetr.workflows.auto_memory import fit_to_memory
from groupdetr.workflows.plan_training import choose_folder, make_plan, with_folder
from groupdetr.workflows.resume import resumed_config
from groupdetr.workflows.run_plan import run_plan
from groupdetr.workflows.training_result import TrainingResult


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
    weights_of: Part | Sequence[Part] | None = None,
    pretrained_backbone: str | Path | None = None,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    check: bool | None = None,
    cache: bool = True,
    stop_after: int | None = None,
    log_with: str | Sequence[str] | None = None,
    transform: nn.Module | None = None,
    callbacks: Sequence[Callback] = (),
    **settings: Unpack[SettingsOptions],
) -> TrainingResult:
    """Train a detector on a dataset, or resume a run, and return its folder and its metrics.

    The keywords are the options of `groupdetr train`, with the same defaults: those of ``model``,
    or of the run that is resumed. ``data`` is a folder or an annotation file with the folder
    ``images``. ``set`` has further fields of the model's recipe. ``settings`` are the fields of
    `Settings`, such as ``epochs`` and ``lr``. ``log_with`` names one or more of the trackers
    tensorboard, wandb, mlflow and trackio. ``transform`` is a module of torchvision.transforms.v2
    that every training image goes through with its boxes and masks, before ``augment``; a run that
    is resumed needs the same one. Without ``cache``, a large COCO file is read again, although what
    was read of it is in huggingface-hub's cache folder. ``callbacks`` are called during
    the training, see `groupdetr.Callback`.

    `TypeError` for an unknown keyword or hook, `UsageError` for values that cannot be used,
    `DataError` for a dataset that cannot be trained on, and `CallbackError` if a callback fails.

    >>> run = groupdetr.train("data/mine", model="dino-tiny", groups=6, epochs=20)
    >>> run.metrics["AP"], run.path, run.weights
    """
    expect_known_keywords(settings)
    check_callbacks(callbacks)
    description = None
    if transform is not None:
        # Imported here, because it imports torchvision.
        from groupdetr.data.own_transform import describe_transform, expect_transform

        expect_transform(transform)
        description = describe_transform(transform)
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
    if weights_of is not None:
        given["weights_of"] = (weights_of,) if isinstance(weights_of, str) else tuple(weights_of)
    if log_with is not None:
        given["log_with"] = (log_with,) if isinstance(log_with, str) else tuple(log_with)
    config = replace(
        config,
        **{name: value for name, value in given.items() if value is not None},
        transform=description,
        settings=with_changes(config.settings, changes),
    )
    return run_training(
        config,
        out=Path(out) if out is not None else None,
        resume=Path(resume) if resume is not None else None,
        stop_after=stop_after,
        cache=cache,
        auto_batch=auto_batch,
        transform=transform,
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
    weights_of: Sequence[Part],
    pretrained_backbone: str,
    out: Path | None,
    resume: Path | None,
    check: bool,
    cache: bool,
    stop_after: int | None,
    log_with: Sequence[str],
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
        weights_of=tuple(weights_of),
        pretrained_backbone=pretrained_backbone,
        check=check,
        settings=settings,
        log_with=tuple(log_with),
    )
    return run_training(
        config,
        out=out,
        resume=resume,
        stop_after=stop_after,
        cache=cache,
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
    cache: bool,
    auto_batch: bool,
    transform: nn.Module | None = None,
    callbacks: Sequence[Callback] = (),
) -> TrainingResult:
    """Make the plan of a training, fit it to the memory if that was asked for, and run it."""
    if stop_after is not None and stop_after < 1:
        raise UsageError(f"stop-after must be at least 1, not {stop_after}")
    for name in ("backbone", "pretrained_backbone"):
        if getattr(config, name) == "":
            raise UsageError(f"{option(name)} must be a name, not an empty text")
    expect_parts_of_weights(config)
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
    if config.settings.fsdp and (auto_batch or config.groups == "auto"):
        raise UsageError(
            f"{'--batch' if auto_batch else '--groups'} auto measures the memory of whole "
            "parameters, and --fsdp divides them",
            remedy="give numbers: --batch 16 --groups 11, with --accumulate, --group-chunk 1 and "
            "--recompute for less memory",
        )
    # Another training of this process may leave the number of threads to PyTorch.
    with restore_threads():
        plan = make_plan(
            config,
            out=out,
            resume=resume,
            stop_after=stop_after,
            cache=cache,
            transform=transform,
        )
        if auto_batch or config.groups == "auto":
            plan = fit_to_memory(plan, may_reduce_groups=config.groups == "auto")
            # The default name of the folder has the K that is trained, which may be smaller now.
            plan = with_folder(plan, choose_folder(config, plan.recipe, out, plan.resumes))
        return run_plan(plan, callbacks)


def expect_parts_of_weights(config: TrainingConfig) -> None:
    """Raise `UsageError` unless ``weights_of`` are parts of a detector, and there are weights."""
    for part in config.weights_of:
        if part not in PARTS:
            raise UsageError(
                f"weights-of {part!r} is no part of a detector",
                remedy=f"choose from {', '.join(PARTS)}",
            )
    if config.weights_of and config.weights is None:
        raise UsageError(
            "--weights-of says which parts of --weights are loaded, and no --weights are given",
            remedy="give --weights RUN, or leave out --weights-of",
        )
