"""The configuration of a training: the options of `groupdetr train` that config.yaml records."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from groupdetr.detectors.recipe import Recipe
from groupdetr.engine.run_folder import RunFolder
from groupdetr.errors import UsageError
from groupdetr.registry import loaded_plugins
from groupdetr.settings import Settings
from groupdetr.structures.json_object import JsonObject


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

    @classmethod
    def from_model(cls, data: Path, model: str, settings: Settings) -> TrainingConfig:
        """Return the configuration of a training with the defaults of all other options."""
        return cls(data, None, model, None, None, None, (), None, "auto", True, settings)

    @classmethod
    def from_run(cls, run: Path) -> TrainingConfig:
        """Return the configuration that the folder of a run has recorded.

        `UsageError` if the run was trained with a plugin that is not loaded: it is never loaded
        because a file names it.
        """
        recorded = RunFolder.existing(run).read_config()
        missing = [name for name in recorded.get("plugins", ()) if name not in loaded_plugins()]
        if missing:
            flags = " ".join(f"--plugin {name}" for name in missing)
            raise UsageError(
                f"this run was trained with plugins: {', '.join(missing)}",
                str(run),
                f"add {flags} (Python: import them first)",
            )
        known = {field.name for field in dataclasses.fields(cls)}
        values = {name: value for name, value in recorded.items() if name in known}
        for name in ("data", "images", "weights"):
            values[name] = Path(values[name]) if values.get(name) else None
        values["settings"] = Settings(**values["settings"])
        values["set"] = tuple(values["set"])
        values.setdefault("backbone", None)
        return cls(**values)

    def to_yaml(self, built: Recipe, planned: Recipe, settings: Settings) -> JsonObject:
        """Return the content of config.yaml, with paths that are valid from every folder.

        ``built`` is the recipe of the model after its weights were loaded. The weights may change
        fields of the ``planned`` recipe. A resumed run does not load them again, so these fields
        are recorded as if they had been set. ``settings`` are those that were fitted to the memory.
        """
        config = dataclasses.asdict(self)
        for name, value in config.items():
            if isinstance(value, Path):
                config[name] = str(value.resolve())
        config["settings"] = dataclasses.asdict(settings)
        config["groups"] = built.num_groups
        config["set"] = [*self.set, *changed_fields(built, planned)]
        config["plugins"] = list(loaded_plugins())
        return config


def changed_fields(built: Recipe, planned: Recipe) -> list[str]:
    """Return the fields, as name=value, in which the recipe of the model differs from the plan."""
    before = dataclasses.asdict(planned)
    after = dataclasses.asdict(built)
    names = after.keys() - {"num_classes", "pretrained_backbone"}
    return [f"{name}={after[name]}" for name in names if after[name] != before[name]]
