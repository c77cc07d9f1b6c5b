"""Detections of several groups of a detector, fused (`--vote`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from groupdetr.errors import UsageError
from groupdetr.groups import groups_are_separate
from groupdetr.settings import MANY, expect_whole_number

if TYPE_CHECKING:
    from groupdetr.tasks.trained_detector import TrainedDetector


def expect_several_groups(detector: TrainedDetector) -> None:
    """Raise `UsageError` unless a detector has several groups, each a detector of its own."""
    recipe = detector.recipe
    if recipe.num_groups == 1:
        raise UsageError(
            "this detector has one group of queries, so there are no others to compare it with",
            str(detector.path),
            "use a detector that was trained with several groups",
        )
    if not groups_are_separate(recipe.group_attention) or recipe.inference_group is None:
        raise UsageError(
            "the groups of this detector attend to each other, or answer together, so none of them "
            "is a detector of its own",
            str(detector.path),
            "use a detector that was trained with separate groups, such as that of Table 7 (d)",
        )


def expect_vote(detector: TrainedDetector, vote: int | None) -> None:
    """Raise `UsageError` unless ``vote`` groups of a detector can be fused. None: they are not."""
    if vote is None:
        return
    expect_whole_number("vote", vote, 2, MANY)
    expect_several_groups(detector)
    if vote > detector.recipe.num_groups:
        raise UsageError(
            f"{vote} groups cannot be fused: this detector has {detector.recipe.num_groups}",
            str(detector.path),
            f"--vote {detector.recipe.num_groups}",
        )
    if detector.task.input_kind != "images" or getattr(detector.task, "kind", "box") != "box":
        raise UsageError(
            "--vote fuses boxes in images, and this detector has other results",
            str(detector.path),
            "leave out --vote",
        )


def voting_groups(num_groups: int, vote: int, answering: int | None) -> list[int]:
    """Return the groups that are fused: the one that answers, and then the first other ones."""
    first = answering or 0
    return [first, *(group for group in range(num_groups) if group != first)][:vote]
