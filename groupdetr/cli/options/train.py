"""groupdetr train: from a data set to a run folder."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from groupdetr.engine.run_folder import RunFolder
from groupdetr.errors import UsageError
from groupdetr.settings import Settings

MODEL = "conditional-detr-r50"


@dataclass(frozen=True)
class Options:
    """Train a detector on a data set: a folder in a known COCO layout, or an annotation file with --images."""

    data: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")] = None
    """The data set."""
    images: Path | None = None
    """Folder of the pictures, if DATA is an annotation file."""
    model: str = MODEL
    """A preset or an experiment of the paper; `groupdetr presets` lists them."""
    groups: Annotated[int | Literal["auto"] | None, tyro.conf.arg(aliases=["--group-detr"])] = None
    """K, groups of queries in training. None: as the model says, the paper's 11 for full-size ones.

    auto: the same; --accumulate and --group-chunk are chosen for the memory at hand, with the same result.
    """
    queries: int | None = None
    """N, queries of a group; the most objects that can be found in an image."""
    set: tuple[str, ...] = ()
    """Other fields of the model's recipe, as name=value: --set dropout=0 decoder_layers=3."""
    weights: Path | None = None
    """Weights to start from: a published checkpoint or one of ours."""
    pretrained_backbone: str = "auto"
    """auto: ImageNet weights for backbones that have them, unless --weights is given; none; or a file."""
    out: Path | None = None
    """Folder of the run. None: runs/DATA-MODEL-Kg-TIME."""
    resume: Path | None = None
    """A run to continue exactly where it was; other options given override the run's."""
    check: bool = True
    """Open every picture before training starts. --no-check reads only the annotations."""
    stop_after: int | None = None
    """Stop at this step, to be resumed later; the schedule stays that of the whole training."""
    fit: Annotated[bool, tyro.conf.Suppress] = False
    """What --batch auto says."""
    settings: Settings = field(default_factory=Settings)

    def run(self) -> int:
        from groupdetr.workflows.train import train

        train(self)
        return 0


def prepared(arguments: list[str]) -> tuple[list[str], Options]:
    """Defaults that depend on other options: those of the model, or of the run that is resumed."""
    arguments, fit = _without_auto(_with_folder_to_resume(arguments))
    resumed, name = _value(arguments, "--resume"), _value(arguments, "--model")
    if resumed is not None:
        options = from_config(RunFolder.existing(Path(resumed)).read_config(), Path(resumed))
        if fit:  # anew, whatever was chosen when the run began
            options = replace(
                options, settings=replace(options.settings, accumulate=1, group_chunk=None)
            )
    elif name is None:
        options = Options()
    else:
        from groupdetr.experiments import experiment

        options = Options(model=name, settings=experiment(name).settings)
    return arguments, replace(options, fit=fit)


def _value(arguments: list[str], flag: str) -> str | None:
    """The last one counts."""
    value = None
    for i, argument in enumerate(arguments):
        if argument == flag and i + 1 < len(arguments):
            value = arguments[i + 1]
        elif argument.startswith(f"{flag}="):
            value = argument.split("=", 1)[1]
    return value


def _without_auto(arguments: list[str]) -> tuple[list[str], bool]:
    """Without ``--batch auto``, and whether that was said last: a batch is a number, by default the model's own."""
    others, values, rest = list[str](), list[str](), iter(arguments)
    for argument in rest:
        if argument.partition("=")[0] == "--batch":
            values.append(argument.partition("=")[2] or next(rest, ""))
        else:
            others.append(argument)
    fit = values[-1:] == ["auto"]
    return others if fit or not values else [*others, "--batch", values[-1]], fit


def _with_folder_to_resume(arguments: list[str]) -> list[str]:
    """A bare --resume means the run of --out, or the one that was worked on last."""
    places = [i for i, a in enumerate(arguments) if a == "--resume"]
    if not places or (
        places[0] + 1 < len(arguments) and not arguments[places[0] + 1].startswith("-")
    ):
        return arguments
    out = _value(arguments, "--out")
    runs = sorted(Path("runs").glob("*/config.yaml"), key=lambda path: path.stat().st_mtime)
    if out is None and not runs:
        raise UsageError(
            "there is no run to resume",
            str(Path("runs").resolve()),
            "pass its folder: --resume RUN",
        )
    folder = out or str(runs[-1].parent)
    return [*arguments[: places[0] + 1], folder, *arguments[places[0] + 1 :]]


def to_config(options: Options) -> dict[str, Any]:
    """What config.yaml holds: the options, with paths that are valid from anywhere."""
    config = dataclasses.asdict(options)
    for name in ("resume", "stop_after", "out", "fit"):
        del config[name]
    paths = {
        name: str(value.resolve()) for name, value in config.items() if isinstance(value, Path)
    }
    return config | paths | {"set": list(options.set)}


def from_config(config: dict[str, Any], run: Path) -> Options:
    """The options of a run, to be resumed."""
    known = {f.name for f in dataclasses.fields(Options)}
    values = {name: value for name, value in config.items() if name in known}
    for name in ("data", "images", "weights"):
        values[name] = Path(values[name]) if values.get(name) else None
    settings = Settings(**values.pop("settings", {}))
    return Options(
        **values
        | {"set": tuple(values.get("set", ())), "settings": settings, "out": run, "resume": run}
    )
