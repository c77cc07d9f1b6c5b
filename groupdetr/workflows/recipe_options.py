"""The recipe of a training: that of its model, and what the options change of it."""

from __future__ import annotations

import re

import yaml

from groupdetr.console.text import quote
from groupdetr.detectors.recipe import Recipe
from groupdetr.engine.step_groups import trains_some_groups
from groupdetr.errors import UsageError
from groupdetr.experiments.experiment import Experiment
from groupdetr.groups import GROUP_ATTENTIONS, MATCHES
from groupdetr.modeling.backbones.registry import has_weights
from groupdetr.modeling.group_chunks import groups_are_independent
from groupdetr.settings import (
    Settings,
)
from groupdetr.tasks.training_config import TrainingConfig

EXPONENTIAL = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")
# Fields of a recipe that --set cannot change: what decides them.
SET_BY_OTHERS = {
    "preset": "--model chooses the preset",
    "num_classes": "the dataset has the classes",
    "pretrained_backbone": "--pretrained-backbone chooses the weights",
    "recompute": "--recompute turns it on",
}
# Fields of a recipe that have an option of their own.
OWN_OPTIONS = {"num_groups": "groups", "num_queries": "queries", "backbone": "backbone"}


def make_recipe(config: TrainingConfig, chosen: Experiment, resumes: bool) -> Recipe:
    """Return the recipe of the experiment with everything that the options change."""
    num_groups = config.settings.groups_at(0) or chosen.recipe.num_groups
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
        is_list = isinstance(getattr(chosen.recipe, name, None), tuple)
        if is_list and isinstance(value, str):
            items = ", ".join(item.strip() for item in value.split(","))
            raise UsageError(
                f"--set {name} takes a list, not {value!r}",
                remedy=f"write it with brackets: --set {quote(f'{name}=[{items}]')}",
            )
        fields[name] = value
    try:
        return chosen.recipe.with_options(**fields)
    except (TypeError, ValueError) as error:
        remedy = "see --groups, --queries, --set and --pretrained-backbone"
        raise UsageError(str(error), remedy=remedy) from error


def expect_fitting_groups(recipe: Recipe, settings: Settings) -> None:
    """Raise `UsageError` unless the steps of a training may train some of the groups.

    Only groups that neither attend to each other nor are matched together can be trained without
    the others.
    """
    if not trains_some_groups(settings):
        return
    per_step, first_groups, last_groups = (
        settings.groups_per_step,
        settings.groups_at(0),
        settings.groups_at(1),
    )
    group_attention, match = GROUP_ATTENTIONS[recipe.group_attention], MATCHES[recipe.match]
    if not groups_are_independent(group_attention, match):
        raise UsageError(
            "groups that attend to each other or are matched together cannot be trained without "
            "each other",
            remedy="leave out --groups-per-step and --groups-schedule",
        )
    if per_step is not None and per_step > recipe.num_groups:
        raise UsageError(
            f"--groups-per-step {per_step} is more than the {recipe.num_groups} groups of this "
            "model",
            remedy=f"choose --groups-per-step from 1 to {recipe.num_groups}, or more --groups",
        )
    if first_groups not in (None, recipe.num_groups):
        raise UsageError(
            f"--groups-schedule begins with {first_groups} groups, and the model has "
            f"{recipe.num_groups}",
            remedy=f"choose --groups {first_groups}, or leave out --groups",
        )
    primary = recipe.inference_group
    if last_groups is not None and (primary is None or primary >= last_groups):
        raise UsageError(
            f"--groups-schedule ends with the first {last_groups} groups, and inference uses "
            f"{'all groups' if primary is None else f'group {primary}'}",
            remedy="choose a group that is trained to the end: --set inference_group=0",
        )
    if per_step is not None and getattr(recipe, "denoise", "") == "denoise_primary_group":
        raise UsageError(
            "with --groups-per-step, the denoising queries of all groups need a loss, because the "
            "primary group is not in every step",
            remedy="choose --set denoise=denoise_all_groups, or leave out --groups-per-step",
        )


def _pretrained_backbone(config: TrainingConfig, recipe: Recipe, resumes: bool) -> bool | str:
    """Return False, True for weights from the hub, or the path of a file."""
    choice = config.pretrained_backbone
    if choice == "none" or resumes:
        return False
    if choice == "auto":
        return has_weights(config.backbone or recipe.backbone) and not config.replaces_backbone
    return choice


def _parse_assignment(text: str) -> tuple[str, object]:
    """Parse name=value of --set. The value is YAML."""
    name, separator, value = text.partition("=")
    if not separator:
        raise UsageError(
            f"--set takes name=value, not {text!r}", remedy="for example --set dropout=0"
        )
    try:
        content = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        what = f"the value of --set {name.strip()} cannot be read: {value!r}"
        raise UsageError(what, remedy="write a value of YAML, such as 0.1, true or name") from error
    # YAML 1.1 has no numbers such as 1e-05, without a point.
    is_number = isinstance(content, str) and EXPONENTIAL.fullmatch(content)
    return name.strip(), float(content) if is_number else content
