"""Every preset, and every row of the paper's tables, as a recipe and how to train it. One dict, found by name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from typing import Any

from groupdetr.data.synthetic import SyntheticConfig
from groupdetr.detectors.conditional_detr import ConditionalDETR
from groupdetr.detectors.recipe import Recipe
from groupdetr.detectors.tiny import TinyConditionalDETR
from groupdetr.errors import UsageError
from groupdetr.groups import jointly, match_naively
from groupdetr.settings import Settings

K = 11  # the paper's number of groups (Sec. 4.1)


@dataclass(frozen=True)
class Experiment:
    """A detector and how it is trained."""

    recipe: Recipe
    settings: Settings
    about: str = ""
    reported: float | None = None  # the paper's COCO AP in percent, where it is a row of a table
    groups: int | None = None  # K that `groupdetr train` takes unless told; None: the recipe's


# how to train

EPOCHS_12 = Settings(epochs=12, lr_drop=11 / 12)  # official scripts: StepLR at epoch 11
EPOCHS_50 = Settings(epochs=50, lr_drop=40 / 50)
TINY_K = 6
TINY = Settings(  # about ten minutes on two cores with three hundred pictures
    epochs=80, batch=8, imgsz=128, lr=1e-3, backbone_lr=1e-3, schedule="cosine", warmup=100, augment="flip"
)  # fmt: skip

# what the demo trains on, and how
DEMO_DATA = SyntheticConfig(
    image_size=192, num_classes=4, max_objects=5, texture=0.3, occlusion=0.2, sizes=(0.1, 0.4, 0.5), seed=1
)  # fmt: skip
DEMO_COUNTS = {"train": 2000, "val": 300}
DEMO = replace(TINY, epochs=8, imgsz=64, augment="flip", eval_every=1)

# what to train

R50, DC5, TINY_CONDITIONAL = ConditionalDETR(), ConditionalDETR(dilated=True), TinyConditionalDETR()


class JointGroups(ConditionalDETR):
    """Table 7 (c): groups without separate self-attention."""

    compete = staticmethod(jointly)


class NaiveOneToMany(JointGroups):
    """Table 7 (b): all queries attend to all, and every object is assigned to K of them."""

    match = staticmethod(match_naively)


class TinyJointGroups(TinyConditionalDETR):
    """Table 7 (c) on a CPU."""

    compete = staticmethod(jointly)


class TinyNaiveOneToMany(TinyJointGroups):
    """Table 7 (b) on a CPU."""

    match = staticmethod(match_naively)


def _presets() -> Iterator[tuple[str, Experiment]]:
    yield "conditional-detr-r50", Experiment(R50, EPOCHS_50, "ResNet-50, stride 32", groups=K)
    yield "conditional-detr-r50-dc5", Experiment(DC5, EPOCHS_50, "ResNet-50 with dilated stage 4, stride 16", groups=K)
    yield (
        "conditional-detr-tiny",
        Experiment(TINY_CONDITIONAL, TINY, "trains from scratch on a CPU in minutes", groups=TINY_K),
    )


def _table2() -> Iterator[tuple[str, Experiment]]:
    """Equal wall time. The paper does not say where 15 and 60 epochs drop the rate: in proportion, here."""
    for epochs, drop, reported in ((15, 14, 34.4), (60, 48, 41.6)):
        settings = Settings(epochs=epochs, lr_drop=drop / epochs)
        yield f"table2/conditional-detr-r50-{epochs}e", Experiment(R50, settings, "Table 2, K = 1", reported)


def _table3() -> Iterator[tuple[str, Experiment]]:
    """With and without groups, at equal epochs."""
    rows = {
        ("r50", 12): (32.6, 37.6),
        ("r50-dc5", 12): (36.4, 41.2),
        ("r50", 50): (40.9, 43.4),
        ("r50-dc5", 50): (43.7, 45.8),
    }
    for (backbone, epochs), (baseline, group) in rows.items():
        recipe, settings = (DC5 if "dc5" in backbone else R50), EPOCHS_12 if epochs == 12 else EPOCHS_50
        name = f"table3/conditional-detr-{backbone}-{epochs}e"
        yield name, Experiment(recipe, settings, "Table 3, K = 1", baseline)
        yield f"{name}-group", Experiment(replace(recipe, num_groups=K), settings, f"Table 3, K = {K}", group)


def _table7() -> Iterator[tuple[str, Experiment]]:
    """What makes Group DETR work, row by row; and the same on a CPU."""
    rows = (
        ("a", R50, TINY_CONDITIONAL, "(a) one-to-one", 32.6),
        (
            "b",
            NaiveOneToMany(inference_group=None),
            TinyNaiveOneToMany(inference_group=None),
            "(b) naive one-to-many",
            8.4,
        ),
        ("c", JointGroups(), TinyJointGroups(), "(c) groups, joint self-attention", 34.8),
        ("d", R50, TINY_CONDITIONAL, "(d) Group DETR", 37.6),
    )
    for row, full, tiny, about, reported in rows:
        groups, few = (1, 1) if row == "a" else (K, TINY_K)
        yield f"table7/{row}", Experiment(replace(full, num_groups=groups), EPOCHS_12, f"Table 7 {about}", reported)
        yield f"table7/{row}-tiny", Experiment(replace(tiny, num_groups=few), TINY, f"Table 7 {about}, on a CPU")


def _fig9() -> Iterator[tuple[str, Experiment]]:
    """More groups, until it saturates. The figure's ticks are not in the text: these are ours."""
    for groups in (1, 3, 5, 7, 9, 11, 13, 15):
        yield f"fig9/k{groups}", Experiment(replace(R50, num_groups=groups), EPOCHS_12, f"Fig. 9, K = {groups}")


def _all() -> Iterator[tuple[str, Experiment]]:
    for part in (_presets, _table2, _table3, _table7, _fig9):
        for name, experiment in part():
            yield name, replace(experiment, recipe=replace(experiment.recipe, preset=name))


EXPERIMENTS: dict[str, Experiment] = dict(_all())


def experiment(name: str) -> Experiment:
    """The experiment or preset called ``name``; UsageError with the nearest names if there is none."""
    if name not in EXPERIMENTS:
        near = get_close_matches(name, EXPERIMENTS, n=3, cutoff=0.5) or list(EXPERIMENTS)[:3]
        raise UsageError(
            f"there is no model {name!r}", remedy=f"did you mean {', '.join(near)}? `groupdetr presets` lists all"
        )
    return EXPERIMENTS[name]


def recipe_from(described: dict[str, Any]) -> Recipe:
    """The recipe that ``dataclasses.asdict`` made a dict of."""
    known = {field.name for field in fields(experiment(described["preset"]).recipe)}
    options = {name: value for name, value in described.items() if name in known and name != "preset"}
    return experiment(described["preset"]).recipe.with_options(**options)
