"""Detectors, data and settings of the paper's items: at small scale, on COCO, or on other data."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from groupdetr.errors import UsageError
from groupdetr.experiments.by_name import EXPERIMENTS
from groupdetr.experiments.recipes import K
from groupdetr.paper import small_scale
from groupdetr.paper.small_scale import DrawnData
from groupdetr.paper.trainings import Field, Store, Training, TrainingSet, short_model
from groupdetr.registry import experiment
from groupdetr.settings import Settings, with_changes
from groupdetr.tasks.registry import task_class

# The ends of the names of presets that train on a CPU
ON_CPU_PRESETS = ("-tiny", "-micro", "-lite")


@dataclass(frozen=True)
class Family:
    """A detector of the paper."""

    label: str
    row: str  # the first part of the names of its rows in the paper's tables
    tables: tuple[str, str] = ("table3", "table4")  # with few and with many epochs
    lengths: tuple[str, str] = ("12e", "50e")


FAMILIES = {
    "conditional-detr": Family("Conditional DETR", "conditional-detr-r50"),
    "conditional-detr-dc5": Family("Conditional DETR, DC5", "conditional-detr-r50-dc5"),
    "dab-detr": Family("DAB-DETR", "dab-detr-r50"),
    "dab-detr-dc5": Family("DAB-DETR, DC5", "dab-detr-r50-dc5"),
    "dn-detr": Family("DN-DETR", "dn-detr-r50"),
    "dn-detr-dc5": Family("DN-DETR, DC5", "dn-detr-r50-dc5"),
    "dab-deformable-detr": Family("DAB-Deformable-DETR", "dab-deformable-detr-r50"),
    "dino": Family("DINO", "dino-4scale-r50", lengths=("12e", "36e")),
    "dino-swin-l": Family("DINO, Swin-L", "dino-4scale-swin-l", lengths=("36e", "36e")),
    "mask2former": Family("Mask2Former", "mask2former-r50", ("masks", "masks")),
    "petr": Family("PETR", "petr-v99", ("scenes", "scenes"), ("24e", "24e")),
    "petrv2": Family("PETRv2", "petrv2-v99", ("scenes", "scenes"), ("24e", "24e")),
}
SHORT, LONG = 0, 1  # indices of `Family.tables` and `Family.lengths`


def row_of(family: str, length: int) -> str:
    """Return the name of the paper's row of a family without groups."""
    item = FAMILIES[family]
    return f"{item.tables[length]}/{item.row}-{item.lengths[length]}"


def reported(family: str, length: int, with_groups: bool) -> float | None:
    """Return the paper's AP or NDS of a family, in percent; None if it has none."""
    if family not in FAMILIES:
        return None
    chosen = EXPERIMENTS.get(row_of(family, length) + ("-group" if with_groups else ""))
    return None if chosen is None else chosen.reported


def family_of(model: str) -> str:
    """Return the family of a preset or row, such as "dab-detr" of dab-detr-lite."""
    name = short_model(model)
    return re.sub(r"-(lite|tiny|micro|r50|4scale-r50|v99)(?=-|$)", "", name)


def trains_on_cpu(model: str) -> bool:
    """Return whether a preset is made for a CPU. LW-DETR-tiny is not, in spite of its name."""
    recipe = experiment(model).recipe
    return model.endswith(ON_CPU_PRESETS) and recipe.channels <= small_scale.MAX_CHANNELS


@dataclass(frozen=True)
class Detector:
    """A detector, how it is trained with any K, and the K of its trainings with groups."""

    family: str
    label: str
    model: str
    queries: int
    settings: Settings
    data: TrainingSet
    groups: int
    length: int = SHORT
    fields: tuple[Field, ...] = ()
    pretrained_backbone: str = "auto"
    name: str = ""  # unique among the detectors of an item, in keys of rows; "": the family

    @property
    def key(self) -> str:
        """The first part of the keys of its rows."""
        return self.name or self.family

    @property
    def metrics(self) -> Sequence[str]:
        """The metrics of its task, the main one first."""
        return task_class(experiment(self.model).task).metrics

    def reported(self, with_groups: bool) -> float | None:
        """Return the paper's AP or NDS in percent, None if there is none."""
        return reported(self.family, self.length, with_groups)

    def training(
        self,
        groups: int,
        seed: int,
        fields: Sequence[Field] = (),
        epochs: float | None = None,
        **changes: object,
    ) -> Training:
        """Return a training with K groups and a seed.

        ``fields`` are further fields of the recipe, and ``changes`` further fields of `Training`.
        """
        settings = replace(self.settings, seed=seed)
        if epochs is not None:
            settings = with_changes(settings, {"epochs": epochs})
        return Training(
            model=self.model,
            groups=groups,
            queries=self.queries,
            data=self.data,
            settings=settings,
            fields=(*self.fields, *fields),
            pretrained_backbone=self.pretrained_backbone,
            **changes,  # type: ignore[arg-type]
        )


def on_cpu(settings: Settings) -> Settings:
    """Return settings for a CPU: one thread and no loader processes.

    The CPU time of the process is then that of the training, whatever else the machine does.
    """
    return replace(settings, threads=1, workers=0, device="cpu")


@dataclass(frozen=True)
class Scale:
    """Which detectors the items train, on which data, and for how long.

    Without ``data``, they are those of `small_scale` on drawn images. With a dataset and no models,
    they are those of the paper's tables. With models, these are trained with their own settings.
    """

    store: Store
    data: Path | None = None
    models: tuple[str, ...] = ()
    groups: int | None = None  # K of trainings with groups; None: the usual one
    queries: int | None = None  # N; None: the usual one
    epochs: float | None = None  # None: the usual ones of each item
    pretrained_backbone: str = "auto"  # as `groupdetr train` takes it

    @property
    def is_small(self) -> bool:
        """True if the data are drawn."""
        return self.data is None

    @property
    def is_paper(self) -> bool:
        """True if the detectors and settings are those of the paper's tables."""
        return self.data is not None and not self.models

    def detectors(self, families: Sequence[str], length: int = SHORT) -> list[Detector]:
        """Return the detectors of an item: those of ``--models`` if they are given, each once.

        `UsageError` if these have different metrics.
        """
        if not self.models:
            return [self.detector(family, length) for family in families]
        chosen = [self._of_model(model, length) for model in dict.fromkeys(self.models)]
        expect_one_metric(chosen)
        names = [detector.family for detector in chosen]
        # Several presets may belong to one family, such as a -lite and a -tiny one.
        return [
            detector
            if names.count(detector.family) == 1
            else replace(detector, name=detector.model)
            for detector in chosen
        ]

    def first(self, family: str, length: int = SHORT) -> Detector:
        """Return the one detector of an item: the first of ``--models`` if they are given."""
        return self.detectors([family], length)[0]

    def detector(self, family: str, length: int = SHORT) -> Detector:
        """Return a detector of the paper, or what stands for it at small scale."""
        if self.is_small:
            return self._small(family, length)
        row = row_of(family, length)
        chosen = experiment(row)
        return self._detector(
            family, FAMILIES[family].label, row, chosen.settings, self.own_data(), K, length
        )

    def _small(self, family: str, length: int) -> Detector:
        small = small_scale.DETECTORS[family]
        label = FAMILIES[family].label if family in FAMILIES else family
        return self._small_detector(family, label, small, length)

    def _small_detector(
        self, family: str, label: str, small: small_scale.SmallDetector, length: int
    ) -> Detector:
        is_scene = experiment(small.preset).task.startswith("detection3d")
        data = small_scale.scenes() if is_scene else small_scale.shapes()
        short = small_scale.SCENES_SHORT if is_scene else small_scale.SHORT
        epochs = short if length == SHORT else short * small_scale.LONG / small_scale.SHORT
        return Detector(
            family=family,
            label=label,
            model=small.preset,
            queries=self.queries or small.queries,
            settings=on_cpu(replace(small.settings, epochs=self.epochs or epochs)),
            data=self.drawn_set(data),
            groups=self.groups or small.groups,
            length=length,
            fields=small.fields,
            pretrained_backbone=self.pretrained_backbone,
        )

    def _of_model(self, model: str, length: int) -> Detector:
        """Return the detector of ``--models``."""
        family = family_of(model)
        if self.is_small:
            small = small_scale.small_detector(model)
            if small is None:
                raise UsageError(
                    f"{model} is not a small detector, and the drawn images are for small ones",
                    remedy="choose a -lite, -tiny or -micro preset; groupdetr paper takes any with "
                    "--data",
                )
            return self._small_detector(family, model, small, length)
        chosen = experiment(model)
        settings = chosen.settings
        if trains_on_cpu(model):
            settings = on_cpu(replace(settings, eval_every=settings.epochs / 20))
        groups = chosen.recipe.num_groups if chosen.recipe.num_groups > 1 else K
        return self._detector(family, model, model, settings, self.own_data(), groups, length)

    def _detector(
        self,
        family: str,
        label: str,
        model: str,
        settings: Settings,
        data: TrainingSet,
        groups: int,
        length: int,
    ) -> Detector:
        if self.epochs is not None:
            every = settings.eval_every * self.epochs / settings.epochs
            settings = with_changes(settings, {"epochs": self.epochs})
            if trains_on_cpu(model):
                settings = replace(settings, eval_every=float(f"{every:.3g}"))
        queries = self.queries or experiment(model).recipe.num_queries
        return Detector(
            family=family,
            label=label,
            model=model,
            queries=queries,
            settings=settings,
            data=data,
            groups=self.groups or groups,
            length=length,
            pretrained_backbone=self.pretrained_backbone,
        )

    def drawn_set(self, data: DrawnData) -> TrainingSet:
        """Return a drawn dataset in the folder of the store."""
        return TrainingSet(
            data.name,
            self.store.data_folder(data.name, data.identity),
            data.description,
            data.num_train,
            data.identity,
            data.write,
        )

    def own_data(self) -> TrainingSet:
        """Return the dataset of ``--data``."""
        assert self.data is not None
        folder = self.data.resolve()
        name = folder.stem if folder.is_file() else folder.name
        return TrainingSet(name, self.data, f"the dataset {folder.name}")

    @property
    def description(self) -> str:
        """The scale in words, for pages."""
        if self.is_small:
            return "at small scale, on drawn data"
        name = self.own_data().name
        return f"as in the paper, on {name}" if self.is_paper else f"with presets, on {name}"


def expect_one_metric(detectors: Sequence[Detector]) -> None:
    """Raise `UsageError` if detectors have different main metrics: one table cannot have both."""
    by_metric: dict[tuple[str, str], str] = {}
    for detector in detectors:
        task = task_class(experiment(detector.model).task)
        by_metric.setdefault((task.kind, task.metrics[0]), detector.model)
    if len(by_metric) > 1:
        raise UsageError(
            "these detectors cannot be compared: their metrics are of "
            + " and of ".join(kind for kind, _ in by_metric),
            ", ".join(by_metric.values()),
            "choose detectors of one kind",
        )


def expect_images(item: str, detector: Detector) -> None:
    """Raise `UsageError` if an item about images is given a detector of scenes."""
    if task_class(experiment(detector.model).task).input_kind != "images":
        raise UsageError(
            f"{item} is about detectors of images, and {detector.model} takes scenes",
            remedy="choose a detector of images",
        )


def protocol_of(detectors: Sequence[Detector]) -> Mapping[str, object]:
    """Return what is equal in all trainings of some detectors, for a page."""
    first = detectors[0]
    settings = first.settings
    return {
        "Detectors": ", ".join(dict.fromkeys(detector.model for detector in detectors)),
        "Data": first.data.description,
        "Queries of a group": ", ".join(str(n) for n in {d.queries: None for d in detectors}),
        "Images": f"{settings.imgsz} pixels, {settings.batch} in a step",
        "Learning rate": f"{settings.lr:g}, of the backbone {settings.backbone_lr:g}, "
        f"{settings.schedule} schedule, the same for every K",
    }
