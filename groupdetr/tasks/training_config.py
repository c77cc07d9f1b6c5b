"""The configuration of a training: the options of `groupdetr train` that config.yaml records."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from groupdetr.checkpoints import hub
from groupdetr.console.text import quote
from groupdetr.data.findings import printable
from groupdetr.detectors.recipe import Recipe
from groupdetr.engine.run_folder import RunFolder
from groupdetr.errors import UsageError
from groupdetr.registry import loaded_plugins
from groupdetr.settings import PARTS, TRACKER_NAMES, Settings
from groupdetr.structures.json_object import JsonObject
from groupdetr.tasks.run_or_weights import expect_run

RESTORE = "restore the file, or start a new run from its weights with --weights"


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_optional_text(value: object) -> bool:
    return value is None or isinstance(value, str)


def _is_optional_count(value: object) -> bool:
    return value is None or (type(value) is int and value > 0)


def _is_list_of_texts(value: object) -> bool:
    return isinstance(value, list | tuple) and all(map(_is_text, value))


def _is_list_of_parts(value: object) -> bool:
    return isinstance(value, list | tuple) and all(part in PARTS for part in value)


def _is_list_of_trackers(value: object) -> bool:
    return isinstance(value, list | tuple) and all(name in TRACKER_NAMES for name in value)


# What config.yaml records besides the settings: a check of the value, and what it accepts.
RECORDED: dict[str, tuple[Callable[[object], bool], str]] = {
    "data": (_is_text, "a path"),
    "images": (_is_optional_text, "a path or null"),
    "model": (_is_text, "the name of a model"),
    "groups": (lambda value: value == "auto" or _is_optional_count(value), "a number of groups"),
    "queries": (_is_optional_count, "a number of queries"),
    "backbone": (_is_optional_text, "a name or null"),
    "set": (_is_list_of_texts, "a list of name=value"),
    "weights": (_is_optional_text, "a path or null"),
    "weights_of": (_is_list_of_parts, f"a list of {', '.join(PARTS)}"),
    "pretrained_backbone": (_is_text, "auto, none or a path"),
    "transform": (_is_optional_text, "the text of a transform or null"),
    "check": (lambda value: isinstance(value, bool), "true or false"),
    "log_with": (_is_list_of_trackers, f"a list of {', '.join(TRACKER_NAMES)}"),
    "settings": (lambda value: isinstance(value, dict), "an object of settings"),
}


@dataclass(frozen=True)
class TrainingConfig:
    """The options of `groupdetr train` that config.yaml records."""

    data: Path
    images: Path | None
    model: str
    groups: int | Literal["auto"] | None
    queries: int | None
    backbone: str | None
    set: tuple[str, ...]  # fields of the recipe, as name=value
    weights: Path | None
    pretrained_backbone: str
    check: bool
    settings: Settings
    log_with: tuple[str, ...] = ()  # trackers
    transform: str | None = None  # of a module that `groupdetr.train` got, its repr
    weights_of: tuple[str, ...] = ()  # parts that get the weights of ``weights``; (): all of them

    @classmethod
    def from_model(cls, data: Path, model: str, settings: Settings) -> TrainingConfig:
        """Return the configuration of a training with the defaults of all other options."""
        return cls(data, None, model, None, None, None, (), None, "auto", True, settings)

    @classmethod
    def from_run(cls, run: Path) -> TrainingConfig:
        """Return the configuration that the folder of a run has recorded.

        `UsageError` if the file cannot be used, or if the run was trained with a plugin that is not
        loaded: it is never loaded because a file names it.
        """
        expect_run(run)
        folder = RunFolder(run)
        recorded = folder.read_config()
        where = str(folder.config)
        plugins = recorded.get("plugins") or ()
        if not _is_list_of_texts(plugins):
            raise _not_recorded("plugins", plugins, "a list of names", where)
        missing = [name for name in plugins if name not in loaded_plugins()]
        if missing:
            flags = " ".join(f"--plugin {quote(name)}" for name in missing)
            raise UsageError(
                f"this run was trained with plugins: {', '.join(missing)}",
                str(run),
                f"add {flags} (Python: import them first)",
            )
        known = {field.name for field in dataclasses.fields(cls)}
        values = {name: value for name, value in recorded.items() if name in known}
        # Older runs lack these.
        values = {"backbone": None, "log_with": (), "weights_of": (), "transform": None} | values
        absent = sorted(known - values.keys())
        if absent:
            raise UsageError(
                f"the configuration of this run lacks {', '.join(absent)}",
                where,
                RESTORE,
            )
        for name, (is_valid, expected) in RECORDED.items():
            if not is_valid(values[name]):
                raise _not_recorded(name, values[name], expected, where)
        for name in ("data", "images", "weights"):
            values[name] = Path(values[name]) if values[name] is not None else None
        values["set"] = tuple(values["set"])
        values["log_with"] = tuple(values["log_with"])
        values["weights_of"] = tuple(values["weights_of"])
        try:
            values["settings"] = Settings(**values["settings"])
        except (TypeError, UsageError) as error:
            reason = getattr(error, "what", str(error))
            what = f"the settings in the configuration of this run cannot be used: {reason}"
            raise UsageError(what, where, RESTORE) from error
        return cls(**values)

    @property
    def replaces_backbone(self) -> bool:
        """True if ``weights`` are those of the backbone, too."""
        return self.weights is not None and (not self.weights_of or "backbone" in self.weights_of)

    def to_yaml(self, built: Recipe, planned: Recipe, settings: Settings) -> JsonObject:
        """Return the content of config.yaml, with paths that are valid from every folder.

        ``built`` is the recipe of the model after its weights were loaded. The weights may change
        fields of the ``planned`` recipe. A resumed run does not load them again, so these fields
        are recorded as if they had been set. ``settings`` are those that were fitted to the memory.
        """
        config = dataclasses.asdict(self)
        for name, value in config.items():
            if isinstance(value, Path):
                config[name] = str(hub.model_named(value) or value.resolve())
        config["settings"] = dataclasses.asdict(settings)
        config["groups"] = built.num_groups
        config["set"] = [*self.set, *changed_fields(built, planned)]
        config["plugins"] = list(loaded_plugins())
        return config


def changed_fields(built: Recipe, planned: Recipe) -> list[str]:
    """Return the fields, as name=value, in which the recipe of the model differs from the plan."""
    before = dataclasses.asdict(planned)
    after = dataclasses.asdict(built)
    names = [name for name in after if name not in ("num_classes", "pretrained_backbone")]
    return [f"{name}={after[name]}" for name in names if after[name] != before[name]]


def _not_recorded(name: str, value: object, expected: str, where: str) -> UsageError:
    """Return the error for a value of config.yaml that `groupdetr train` cannot have written."""
    what = f"{name} is {printable(value)} in the configuration of this run, not {expected}"
    return UsageError(what, where, RESTORE)
