"""The options of `groupdetr train`, and their defaults that depend on other options."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from groupdetr.cli.options.plugin import PluginOptions
from groupdetr.errors import UsageError
from groupdetr.settings import (
    DEFAULT_MODEL,
    DEFAULT_SETTINGS,
    Part,
    Settings,
    TrackerName,
    with_changes,
)


@dataclass(frozen=True)
class TrainOptions(PluginOptions):
    """Train a detector on a dataset: a folder in a known layout, or an annotation file.

    Formats are COCO, YOLO, Pascal VOC, Hugging Face datasets and nuScenes.
    """

    data: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")] = None
    """The dataset."""
    images: Path | None = None
    """Folder of the images, if DATA is an annotation file and they are not beside it."""
    model: str = DEFAULT_MODEL
    """A preset or an experiment of the paper; `groupdetr presets` lists them."""
    groups: Annotated[int | Literal["auto"] | None, tyro.conf.arg(aliases=["--group-detr"])] = None
    """K, the number of groups of queries in training. None: the model's own, which is the paper's
    11 for models of full size.

    auto: the same number. --accumulate and --group-chunk are then chosen so that a step fits into
    the memory of this machine; they do not change the result.
    """
    queries: int | None = None
    """N, the number of queries of a group. No more objects can be detected in an image."""
    backbone: str | None = None
    """Another backbone: the name of a timm model such as convnext_tiny.fb_in22k. None: that of the
    model."""
    set: tuple[str, ...] = ()
    """Other fields of the model's recipe, as name=value: --set dropout=0 decoder_layers=3."""
    weights: Path | None = None
    """Weights to start from: a published checkpoint, a file or run of this library, or a model on
    the Hugging Face hub: owner/name or owner/name@REVISION."""
    weights_of: tuple[Part, ...] = ()
    """Parts of the detector that start from --weights; none: all of them. The others start as
    without --weights. The decoder is that without its heads."""
    pretrained_backbone: str = "auto"
    """auto: ImageNet weights for backbones that have them, unless --weights is given; none: random
    weights; or a file."""
    out: Path | None = None
    """Folder of the run. None: runs/DATA-MODEL-Kg-TIME."""
    resume: Path | None = None
    """A run to continue exactly where it stopped. Other options that are given override its own."""
    check: bool = True
    """Decode every image before training starts. --no-check reads only the headers of images."""
    cache: bool = True
    """Keep what was read of a large COCO file in huggingface-hub's cache folder. The next start
    reads it from there if the file has not changed, and the processes of a machine share it in
    memory. Images of a large dataset that were sound are not opened again, either. --no-cache reads
    the files."""
    stop_after: int | None = None
    """Stop after this step, to be resumed later. The schedule stays that of the whole training."""
    json: bool = False
    """Print one JSON object at the end: the folder, the length and the best metrics
    (docs/json.md). Progress goes to stderr."""
    log_with: tuple[TrackerName, ...] = ()
    """Experiment trackers that also get the log, the configuration and images of the training. Each
    needs a package: pip install 'groupdetr[tensorboard]'. The run's own files have everything
    without them."""
    callback: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="MODULE:CLASS")
    ] = ()
    """A callback of your own: a class that is created without arguments, in a module or a .py file.
    The option may be given several times."""
    auto_batch: Annotated[bool, tyro.conf.Suppress] = False
    """True for --batch auto."""
    # None: those of the model. `prepare` and this class replace None.
    settings: Settings = field(default=None)  # type: ignore[assignment]
    """How the detector is trained. The defaults are those of the model."""

    def __post_init__(self) -> None:
        if self.settings is None and self.model == DEFAULT_MODEL:
            object.__setattr__(self, "settings", DEFAULT_SETTINGS)
        elif self.settings is None:
            # Imported here: the experiments import torch, and `groupdetr --help` does not.
            from groupdetr.registry import experiment

            object.__setattr__(self, "settings", experiment(self.model).settings)


def prepare(arguments: Sequence[str]) -> tuple[list[str], TrainOptions]:
    """Return the arguments for tyro, and the defaults of the options.

    The defaults are those of the model that --model names, or of the run that --resume names.
    """
    arguments = _complete_resume(list(arguments))
    arguments, auto_batch = _without_auto_batch(arguments)
    resumed = _last_value(arguments, "--resume")
    model = _last_value(arguments, "--model")
    changes = _given_schedule(arguments)
    if resumed is not None:
        run = Path(resumed)
        options = options_of_run(run)
        if auto_batch:
            # Fit to the memory of this machine, whatever was chosen when the run began.
            settings = replace(options.settings, accumulate=1, group_chunk=None)
            options = replace(options, settings=settings)
    else:
        options = TrainOptions(model=model or DEFAULT_MODEL)
    settings = with_changes(options.settings, changes)
    return arguments, replace(options, settings=settings, auto_batch=auto_batch)


def options_of_run(run: Path) -> TrainOptions:
    """Return the options of a run that is resumed, from its config.yaml."""
    from groupdetr.tasks.training_config import TrainingConfig

    config = TrainingConfig.from_run(run)
    recorded = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    recorded.pop("transform")  # Only Python can pass it: without it, the run is refused later.
    return TrainOptions(**recorded, out=run, resume=run)


def _last_value(arguments: Sequence[str], flag: str) -> str | None:
    """Return the value of the last occurrence of a flag, None if there is none."""
    value = None
    for i, argument in enumerate(arguments):
        if argument == flag and i + 1 < len(arguments):
            value = arguments[i + 1]
        elif argument.startswith(f"{flag}="):
            value = argument.split("=", 1)[1]
    return value


def _given_schedule(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the options that are given and that change the defaults of others.

    They are the length of the training and its schedule. Values that are no numbers are left out;
    tyro refuses them.
    """
    given: dict[str, Any] = {}
    for name, kind in (("epochs", float), ("steps", int), ("minutes", float), ("schedule", str)):
        value = _last_value(arguments, f"--{name}")
        if value is None or value == "None":
            continue
        with suppress(ValueError):
            given[name] = kind(value)
    if given.get("schedule") not in (None, "step", "cosine"):
        del given["schedule"]
    drops = _values(arguments, "--lr-drop")
    if drops is not None:
        with suppress(ValueError):
            given["lr_drop"] = tuple(map(float, drops))
    return given


def _values(arguments: Sequence[str], flag: str) -> list[str] | None:
    """Return the values of the last occurrence of a flag that takes several, None without it."""
    found: list[str] | None = None
    for i, argument in enumerate(arguments):
        name, separator, value = argument.partition("=")
        if _normalised(name) != flag:
            continue
        following = takewhile(lambda text: not text.startswith("--"), arguments[i + 1 :])
        found = [value] if separator else list(following)
    return found


def _normalised(flag: str) -> str:
    """Return a flag as it is documented: tyro also takes --lr_drop for --lr-drop."""
    return flag.replace("_", "-")


def _without_auto_batch(arguments: list[str]) -> tuple[list[str], bool]:
    """Return the arguments without ``--batch auto``, and True if it was among them.

    With ``--batch auto``, the batch is the model's own. If --batch is given several times, the last
    one counts.
    """
    others: list[str] = []
    values: list[str] = []
    remaining = iter(arguments)
    for argument in remaining:
        flag, separator, value = argument.partition("=")
        if flag == "--batch":
            values.append(value if separator else next(remaining, ""))
        else:
            others.append(argument)
    if not values:
        return others, False
    if values[-1] == "auto":
        return others, True
    return [*others, "--batch", values[-1]], False


def _complete_resume(arguments: list[str]) -> list[str]:
    """Add the value of a --resume without one: the run of --out, or the latest run in runs/."""
    if "--resume" not in arguments:
        return arguments
    position = arguments.index("--resume")
    value = arguments[position + 1 : position + 2]
    if value and not value[0].startswith("-"):
        return arguments
    folder = _last_value(arguments, "--out")
    if folder is None:
        configs = Path("runs").glob("*/config.yaml")
        runs = sorted(configs, key=lambda path: path.stat().st_mtime)
        if not runs:
            raise UsageError(
                "there is no run to resume",
                str(Path("runs").resolve()),
                "pass its folder: --resume RUN",
            )
        folder = str(runs[-1].parent)
    return [*arguments[: position + 1], folder, *arguments[position + 1 :]]
