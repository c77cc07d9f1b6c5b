"""Trainings by what they are, and the folder in which all tables and figures share them.

Two items of the paper that need the same training find it under the same name. The name says the
model, K, N, the epochs, the data and the seed. What a name cannot hold, such as learning rates,
decides a short hash at its end.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from groupdetr.console.text import file_name
from groupdetr.engine.run_folder import RunFolder
from groupdetr.errors import GroupDETRError, UsageError
from groupdetr.experiments.experiment import Experiment
from groupdetr.registry import experiment, loaded_plugins
from groupdetr.report.run_summary import trained_on_cpu
from groupdetr.settings import LENGTHS, Settings
from groupdetr.structures.json_object import JsonObject
from groupdetr.tasks.training_config import TrainingConfig

# Settings that change how a training is computed, but not its result. See `changes_result`.
EXECUTION = (
    *("threads", "workers", "device", "save_every", "accumulate", "group_chunk", "compile"),
    *("cache_features", "fsdp"),
)
# Settings that have a place of their own in the name.
NAMED = ("epochs", "steps", "seed", "freeze")
HASH_LETTERS = 6
MAX_NAME = 120  # letters of the name of a folder

Field = tuple[str, object]  # the name of a field of a recipe, and its value


@dataclass(frozen=True)
class TrainingSet:
    """The dataset of a training: one that this library draws, or one of the user."""

    name: str  # a part of the names of trainings, such as "shapes" or "coco"
    folder: Path
    description: str = ""  # for pages
    num_train: int | None = None  # training images or samples; None: not known before the training
    identity: str = ""  # what a drawn dataset depends on; "" for one of the user
    # Writes a dataset that is drawn, unless its folder holds it already.
    write: Callable[[Path], None] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Training:
    """What a training is. Equal trainings are one training.

    ``settings`` are all settings, ``epochs`` and ``seed`` among them. Weights may come from another
    training, as a whole or only ``parts`` of them.
    """

    model: str  # a preset, or a row of a table of the paper without its K
    groups: int  # K
    queries: int  # N, of a group
    data: TrainingSet
    settings: Settings
    fields: tuple[Field, ...] = ()  # other fields of the recipe, as `--set` takes them
    parent: Training | None = None  # whose best weights this training starts from
    parts: tuple[str, ...] = ()  # of the weights of the parent: backbone, encoder; (): all
    pretrained_backbone: str = "auto"  # as `groupdetr train` takes it

    def __str__(self) -> str:
        return self.name

    @property
    def seed(self) -> int:
        return self.settings.seed

    @property
    def epochs(self) -> float:
        return self.settings.epochs

    @cached_property
    def experiment(self) -> Experiment:
        """The recipe, task and usual settings of the model."""
        return experiment(self.model)

    @cached_property
    def name(self) -> str:
        """The name of the folder, the same for equal trainings on every machine."""
        parts = [
            short_model(self.model),
            f"k{self.groups}",
            f"n{self.queries}",
            f"{self.epochs:g}e" if self.settings.steps is None else f"{self.settings.steps}steps",
            self.data.name,
            f"seed{self.seed}",
        ]
        for name, value in self.fields:
            # Names of functions explain themselves, numbers need the name of their field.
            known = isinstance(value, str)
            parts.append(str(value) if known else f"{name}-{json.dumps(value)}")
        if self.settings.freeze:
            parts.append("frozen-" + "-".join(self.settings.freeze))
        if self.parent is not None:
            parts.append(f"from-{'-'.join(self.parts) or 'weights'}")
        if self.hidden:
            content = json.dumps(self.hidden, sort_keys=True, default=str)
            parts.append(hashlib.sha256(content.encode()).hexdigest()[:HASH_LETTERS])
        name = re.sub(r"[^a-z0-9.]+", "-", "-".join(parts).lower()).strip("-")
        if len(name) > MAX_NAME:
            end = hashlib.sha256(name.encode()).hexdigest()[:HASH_LETTERS]
            name = f"{name[:MAX_NAME]}-{end}"
        return file_name(name)

    @property
    def hidden(self) -> dict[str, object]:
        """What this training is that its name does not say; {} if the name says everything."""
        usual = self.experiment.settings
        hidden = {
            name: value
            for name, value in dataclasses.asdict(self.settings).items()
            if name not in NAMED and value != getattr(usual, name) and self.changes_result(name)
        }
        if self.data.identity:
            hidden["data"] = self.data.identity
        if self.parent is not None:
            hidden["parent"] = self.parent.name
        if self.pretrained_backbone != "auto":
            hidden["pretrained_backbone"] = Path(self.pretrained_backbone).name
        return hidden

    def changes_result(self, setting: str) -> bool:
        """True if the result of this training depends on the setting of this name.

        It depends on the number of micro-batches if batch norms are trained.
        """
        if setting == "accumulate":
            recipe = self.experiment.recipe.with_options(**dict(self.fields))
            return recipe.trains_batch_norms(self.settings.freeze)
        return setting not in EXECUTION

    @property
    def total_steps(self) -> int | None:
        """Optimizer steps; None if the number of training images is not known yet."""
        if self.settings.steps is not None:
            return self.settings.steps
        if self.data.num_train is None:
            return None
        return self.settings.total_steps(self.data.num_train)

    def with_changes(self, **changes: object) -> Training:
        """Return this training with other settings, such as ``epochs=7.5``."""
        return dataclasses.replace(
            self,
            settings=dataclasses.replace(self.settings, **changes),  # type: ignore[arg-type]
        )


def name_without_seed(name: str, seed: int) -> str:
    """Return the name of a training without its seed: the same for trainings that differ in it."""
    # What follows in a long name is a hash of all of it.
    rest = name[:MAX_NAME].replace(f"-seed{seed}", "", 1)
    # A training that starts from another one ends with a hash of that one's name, seed included.
    return rest.rsplit("-", 1)[0] if "-from-" in rest else rest


def short_model(model: str) -> str:
    """Return the name of a model for a folder: that of a row lacks its table and its epochs."""
    return re.sub(r"-\d+e$", "", model.rpartition("/")[2])


class Store:
    """The folder of all trainings and drawn datasets: ``OUT/trainings`` and ``OUT/data``."""

    def __init__(self, out: Path) -> None:
        self.out = out

    @property
    def trainings(self) -> Path:
        return self.out / "trainings"

    def folder(self, training: Training) -> Path:
        return self.trainings / training.name

    def data_folder(self, name: str, identity: str) -> Path:
        """Return the folder of a drawn dataset. Another identity is another folder."""
        return self.out / "data" / f"{name}-{identity}"

    def run(self, training: Training) -> StoredTraining:
        """Return the training with its folder.

        `UsageError` if the folder holds another training.
        """
        stored = StoredTraining(training, self)
        stored.expect_same()
        return stored


@dataclass(frozen=True)
class StoredTraining:
    """A training and its folder: what is done of it, and how it is started."""

    training: Training
    store: Store = field(compare=False)

    def __str__(self) -> str:
        return self.training.name

    @property
    def folder(self) -> Path:
        return self.store.folder(self.training)

    @property
    def run(self) -> RunFolder:
        return RunFolder(self.folder)

    @property
    def exists(self) -> bool:
        """True if the training has begun, so that it can be resumed."""
        return self.run.config.is_file()

    @property
    def steps(self) -> int | None:
        """Optimizer steps of the whole training; None if they are not known yet."""
        known = self.training.total_steps
        if known is not None:
            return known
        try:
            splits = json.loads(self.run.data.read_text(encoding="utf-8"))["splits"]
            train = splits["train"]
            count = int(train.get("images", train.get("samples")))
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return None
        return self.training.settings.total_steps(count)

    @property
    def done(self) -> bool:
        """True if the training was evaluated after its last step, and its best weights exist."""
        steps = self.steps
        if steps is None or not self.exists or not self.run.best.is_file():
            return False
        return any(record["step"] >= steps for record in self.run.evaluations())

    @property
    def state(self) -> str:
        """Return "done", "interrupted" or "absent"."""
        if self.done:
            return "done"
        return "interrupted" if self.exists else "absent"

    @property
    def parent(self) -> StoredTraining | None:
        """The training whose weights this one starts from."""
        if self.training.parent is None:
            return None
        return self.store.run(self.training.parent)

    def expect_same(self) -> None:
        """Raise `UsageError` if the folder holds another training than this one."""
        if not self.exists:
            return
        recorded = TrainingConfig.from_run(self.folder)
        differences = list(self._differences(recorded))
        if differences:
            raise UsageError(
                f"the folder of {self.training.name} holds another training: "
                f"{'; '.join(differences[:4])}",
                str(self.folder),
                "move this folder away, or choose another one with --out",
            )

    def _differences(self, recorded: TrainingConfig) -> Iterator[str]:
        """Yield in words in which a recorded configuration differs from this training."""
        training = self.training
        own = training.experiment.recipe
        expected: dict[str, object] = {
            "data": training.data.folder.resolve(),
            "model": training.model,
            "groups": training.groups,
            "queries": training.queries,
            "weights": None if self.parent is None else self.parent.run.best.resolve(),
            "weights_of": training.parts,
            "pretrained_backbone": absolute_if_file(training.pretrained_backbone),
        }
        for name, value in expected.items():
            was = getattr(recorded, name, ())
            if name == "pretrained_backbone" and isinstance(was, str):
                was = absolute_if_file(was)
            if name == "queries" and was is None:
                was = own.num_queries
            if isinstance(was, Path):
                was = was.resolve()
            elif isinstance(value, tuple):
                was = tuple(was or ())
            if was != value:
                yield f"{name} {was}, not {value}"
        # Weights of the parent may have changed fields of the recipe, which are recorded, too.
        missing = set(assignments(training.fields)) - set(recorded.set)
        if missing:
            yield f"it lacks --set {' '.join(sorted(missing))}"
        # A number of steps replaces that of epochs.
        ignored = ("epochs",) if training.settings.steps else ()
        for name, value in dataclasses.asdict(training.settings).items():
            was = getattr(recorded.settings, name)
            if name not in ignored and was != value and training.changes_result(name):
                yield f"{name.replace('_', '-')} {was}, not {value}"

    def command(self) -> list[str]:
        """Return the command that trains, or that resumes what was interrupted.

        Its paths are absolute, because a scheduler starts it in another folder.
        """
        plugins: list[str] = []
        for name in loaded_plugins():
            plugins += ["--plugin", os.path.abspath(name) if name.endswith(".py") else name]
        folder = os.path.abspath(self.folder)
        if self.exists:
            return ["groupdetr", "train", "--resume", folder, *plugins]
        training = self.training
        own = training.experiment.recipe
        data = os.path.abspath(training.data.folder)
        arguments = ["groupdetr", "train", data, "--model", training.model]
        arguments += ["--groups", str(training.groups)]
        if training.queries != own.num_queries:
            arguments += ["--queries", str(training.queries)]
        if training.fields:
            arguments += ["--set", *assignments(training.fields)]
        if self.parent is not None:
            arguments += ["--weights", os.path.abspath(self.parent.run.best)]
        if training.parts:
            arguments += ["--weights-of", *training.parts]
        if training.pretrained_backbone != "auto":
            backbone = absolute_if_file(training.pretrained_backbone)
            arguments += ["--pretrained-backbone", backbone]
        if training.data.identity:
            arguments.append("--no-check")  # Drawn images need no check.
        arguments += flags_of_changes(training.settings, training.experiment.settings)
        return [*arguments, "--out", folder, *plugins]

    def command_line(self) -> str:
        """Return the command as a line of a shell."""
        return shlex.join(self.command())

    def last_step(self) -> int:
        """Return the last logged step; 0 if nothing was logged."""
        records = self.run.records()
        return int(records[-1]["step"]) if records else 0

    def seconds(self) -> float:
        """Return the wall time of the training so far; 0 if nothing was logged."""
        records = self.run.records()
        return float(records[-1]["seconds"]) if records else 0.0

    def compute_seconds(self) -> float:
        """Return the time that a comparison at equal time counts, after the last step.

        It is the CPU time of the process if it trained on a CPU, which does not depend on other
        programs, and else the wall time.
        """
        record = self.run.evaluations()[-1]
        seconds = float(record["seconds"])
        if not trained_on_cpu(self.run):
            return seconds
        cpu_seconds = float(record.get("cpu_seconds", 0.0))
        if cpu_seconds <= 0:
            raise GroupDETRError(
                "this training did not record its CPU time, so it has no equal-time comparison",
                str(self.run.log),
                "move its folder away; the same command then trains it again",
            )
        return cpu_seconds


def expect_same_data(runs: Sequence[StoredTraining]) -> None:
    """Raise `UsageError` if a dataset of the user has changed between trainings on it.

    Trainings that have not begun are left out. Drawn datasets do not change.
    """
    first: dict[Path, tuple[StoredTraining, JsonObject]] = {}
    for run in runs:
        content = run.run.data_fingerprint()
        if content is None or run.training.data.identity:
            continue
        other, expected = first.setdefault(run.training.data.folder, (run, content))
        if content != expected:
            raise UsageError(
                f"the data have changed between two trainings: {other} and {run} cannot be "
                "compared",
                str(run.training.data.folder),
                f"move the folder of the one with other data than now out of {run.folder.parent}; "
                "the same command then trains it again",
            )


def absolute_if_file(choice: str) -> str:
    """Return the absolute path of a file, and any other choice, such as "none", as it is."""
    return os.path.abspath(choice) if os.path.exists(choice) else choice


def assignments(fields: tuple[Field, ...]) -> list[str]:
    """Return fields of a recipe as name=value, as ``--set`` takes them."""
    return [
        f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in fields
    ]


def flags_of_changes(settings: Settings, usual: Settings) -> list[str]:
    """Return the options of `groupdetr train` that change the ``usual`` settings to others.

    The length and the seed are always among them, so that a command says them.
    """
    flags: list[str] = []
    length = "minutes" if settings.minutes is not None else "steps" if settings.steps else "epochs"
    for item in dataclasses.fields(settings):
        name, value = item.name, getattr(settings, item.name)
        is_length = name in LENGTHS
        if is_length and name != length:
            continue
        if name == "lr_drop" and settings.schedule == "cosine":
            continue
        # A schedule that is changed has its own drops, unless they are given, too.
        is_implied = name == "lr_drop" and settings.schedule != usual.schedule
        if value == getattr(usual, name) and not (is_length or name == "seed" or is_implied):
            continue
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, tuple):
            flags += [f"--{flag}", *map(str, value)]
        else:
            flags += [f"--{flag}", shortest(value)]
    return flags


def shortest(value: object) -> str:
    """Return a value as text, a number without digits that it does not need: 12 for 12.0."""
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    return str(value)
