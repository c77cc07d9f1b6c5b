"""What a run that is resumed keeps, and which options may still change."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path

from groupdetr.console.text import quote
from groupdetr.data.fingerprint import differences
from groupdetr.data.records import TrainingData
from groupdetr.engine.run_folder import RunFolder
from groupdetr.engine.step_groups import trains_some_groups
from groupdetr.engine.trainer import Trainer
from groupdetr.errors import DataError, UsageError
from groupdetr.registry import experiment
from groupdetr.settings import (
    option,
)
from groupdetr.tasks.training_config import TrainingConfig
from groupdetr.workflows.detector_plan import DetectorPlan
from groupdetr.workflows.recipe_options import OWN_OPTIONS, make_recipe

# Fields of a recipe that may change when a run is resumed, because its weights keep their meaning.
CHANGEABLE = (
    *("num_classes", "pretrained_backbone", "num_detections", "inference_group"),
    *("group_attention", "match", "dropout", "recompute", "frozen_stages", "num_denoising"),
    *("denoising_groups", "label_noise_ratio", "box_noise_scale", "denoise", "grid_mask"),
    "num_samples",
)


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
    for name in ("weights", "weights_of", "pretrained_backbone"):
        if getattr(config, name) != getattr(recorded, name):
            raise UsageError(
                f"--{option(name)} has no effect on a run that is resumed, because its weights are "
                "those of its last checkpoint",
                str(resume),
                f"leave out --{option(name)}, or start a new run with it",
            )
    if config.transform != recorded.transform:
        raise _other_transform(config.transform, recorded.transform, resume)
    if config.check and not recorded.check:
        raise UsageError(
            "the images of a run are checked before its first step only, not when it is resumed",
            str(resume),
            "leave out the check; groupdetr check DATA checks them",
        )
    if trains_some_groups(recorded.settings) and not trains_some_groups(config.settings):
        # The moments of groups that were not in every step do not belong to one step.
        options = [
            f"--{option(name)} {getattr(recorded.settings, name)}"
            for name in ("groups_per_step", "groups_schedule")
            if getattr(recorded.settings, name) is not None
        ]
        raise UsageError(
            "this run trains some of its groups in a step, which cannot end when it is resumed",
            str(resume),
            f"keep {' '.join(options)}, or choose another number",
        )
    chosen = experiment(config.model)
    before = dataclasses.asdict(make_recipe(recorded, chosen, resumes=True))
    now = dataclasses.asdict(make_recipe(config, chosen, resumes=True))
    for name, value in before.items():
        if name not in CHANGEABLE and now[name] != value:
            flag = f"--{OWN_OPTIONS[name]}" if name in OWN_OPTIONS else f"--set {name}"
            raise _fixed(flag, value, resume)
    return config


def _other_transform(given: str | None, recorded: str | None, resume: Path) -> UsageError:
    """Return the error for a run that is resumed with another transform of the images."""
    if recorded is None:
        return UsageError(
            "this run was trained without a transform of its images",
            str(resume),
            "leave out transform, or start a new run from its weights: weights=RUN",
        )
    what = "this run was trained with a transform of its images, which config.yaml cannot hold"
    if given is not None:
        what = "this run was trained with another transform of its images"
    return UsageError(
        what,
        f"{resume}\n{recorded}",
        f"resume it in Python with this transform: groupdetr.train(resume={str(resume)!r}, "
        "transform=...)",
    )


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
    recorded = run.data_fingerprint()
    if recorded is None:
        raise UsageError(
            "what this run recorded of its data cannot be read, so nobody knows whether they have "
            "changed",
            str(run.data),
            "restore this file from a copy, or start a new run from these weights: "
            f"--weights {quote(run.path)}",
        )
    changes = differences(recorded, dataset.fingerprint())
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
