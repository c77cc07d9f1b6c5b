"""Settings of a training: every number that does not belong to the model.

The defaults are those of DETR, with which all official repositories train.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import Annotated, Any, Literal, TypedDict, get_args

import tyro

from groupdetr.errors import UsageError

DEFAULT_MODEL = "conditional-detr-r50"  # of `groupdetr train`
DEFAULT_LR_DROP = (11 / 12,)
# Experiment trackers, of which a training may use several.
TrackerName = Literal["tensorboard", "wandb", "mlflow", "trackio"]
TRACKER_NAMES: tuple[TrackerName, ...] = get_args(TrackerName)
# Options that say how long a training is. One of them is given, and it replaces the others.
LENGTHS = ("epochs", "steps", "minutes")
# A part of a detector, as in `groupdetr.modeling.detr`. The decoder is that without its heads.
Part = Literal["backbone", "encoder", "decoder", "queries", "heads"]
PARTS: tuple[Part, ...] = get_args(Part)


@dataclass(frozen=True)
class Settings:
    """Settings of a training. The model has its own defaults (see `groupdetr presets`).

    `UsageError` for values that cannot be used.

    >>> settings = groupdetr.Settings(epochs=24, lr=2e-4, precision="bf16")
    >>> settings.as_flags()[:2]
    ['--epochs', '24']
    """

    epochs: float = 12.0
    """Passes over the training images."""
    steps: int | None = None
    """Optimizer steps, instead of epochs."""
    minutes: float | None = None
    """Wall time of the training, instead of epochs; the schedule is stretched to it.

    Evaluations, checkpoints and callbacks are included; the last evaluation comes after it.
    """
    batch: Annotated[int, tyro.conf.arg(metavar="INT|auto")] = 16
    """Images of an optimizer step, over all processes and micro-batches.

    auto: the model's own batch. --accumulate and --group-chunk are then chosen so that a step fits
    into the memory of this machine; they do not change the result.
    """
    accumulate: int = 1
    """Micro-batches of a batch (gradient accumulation): less memory, the same result. Only batch
    norms that are trained change it: their statistics are those of a micro-batch."""
    imgsz: int = 800
    """Shortest side of an image in validation, in pixels; training draws from DETR's sizes scaled
    by it. For models of squares, such as LW-DETR and RF-DETR, their side."""
    augment: Annotated[str, tyro.conf.arg(metavar="NAME[+mosaic][+photometric]")] = "detr"
    """detr: flip and resize, or resize-crop-resize; lsj: flip and large scale jitter, to a square
    of 1024/800 of imgsz; flip: flip only; none: as in validation. With +mosaic, half of the images
    are put together with three others before that. With +photometric, brightness, contrast and
    colours change, too, which helps small datasets. For scenes: petr, which resizes,
    crops and flips all images of a sample in the same way, and rotates and scales the world; or
    none."""
    multi_scale: Literal["off", "per-image", "per-batch"] = "off"
    """Sizes of training images, for models whose images are squares. off: imgsz. per-image: each
    image has its own size, as in LW-DETR. per-batch: all images of a step have one size, as in
    RF-DETR. docs/custom-data.md lists the sizes."""
    lr: float = 1e-4
    """Learning rate."""
    backbone_lr: float = 1e-5
    """Learning rate of the backbone."""
    decoder_lr: float | None = None
    """Learning rate of the decoder without its heads; None: --lr."""
    layer_decay: float | None = None
    """Factor of the backbone's learning rate, applied once more for every layer before the last;
    None: all layers have the same rate."""
    weight_decay: float = 1e-4
    """Weight decay of AdamW."""
    schedule: Literal["step", "cosine"] = "step"
    """step: a tenth of the learning rate after every lr_drop; cosine: falls smoothly to zero."""
    lr_drop: tuple[float, ...] = DEFAULT_LR_DROP
    """When the step schedule drops. Numbers below 1 are fractions of the training; numbers above 1
    are epochs, as in DETR's scripts."""
    warmup: int = 0
    """Steps over which the learning rate rises from zero; at most a third of the training."""
    clip: float = 0.1
    """Largest L2 norm of the gradient."""
    ema: float | None = None
    """Decay of an exponential moving average of the weights, used for evaluation; None: off. 0.9997
    is common."""
    ema_warmup: int | None = None
    """Steps over which the decay of --ema rises: in step n it is multiplied by 1 - exp(-n / steps).
    It is ema_tau of rfdetr and tau of Ultralytics. None: the decay is constant."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16: forward pass under autocast; costs and losses stay in fp32. On a GPU they then use
    TF32. fp32: everything in fp32, without TF32. auto: bf16 on a GPU that computes it, otherwise
    fp32."""
    freeze: tuple[Part, ...] = ()
    """Parts of the detector that are not trained: they keep their weights, stay in evaluation mode,
    and have no gradients and no state of the optimizer. The decoder is that without its heads."""
    cache_features: bool = False
    """Compute what frozen parts in front of the decoder return once for every training image, and
    read it in every step. It needs --freeze backbone, perhaps with encoder, --augment flip or none,
    and images of one size; the result is the same. --no-cache-features turns it off."""
    compile: bool = False
    """Compile the network with torch.compile (minutes of warm-up; a CPU needs a C++ compiler)."""
    recompute: bool = False
    """Gradient checkpointing in encoder, decoder and transformer backbones: less memory, more
    time."""
    fsdp: bool = False
    """Divide parameters, gradients, the optimizer's state and the moving average over the processes
    that torchrun starts (fully sharded data parallel), for models that do not fit into the memory
    of one GPU: less memory, more communication, the same result. --no-fsdp turns it off."""
    group_chunk: int | None = None
    """Groups whose decoder and loss are computed at once: less memory, the same result; None:
    all."""
    groups_per_step: int | None = None
    """Groups that are drawn at random in every step and trained by it, of the K groups: less time.
    The gradient is that of all groups in expectation; None: all."""
    groups_schedule: Annotated[str | None, tyro.conf.arg(metavar="K:FRACTION,...")] = None
    """Fewer groups after a fraction of the training: 6:0.5,1:1 trains six groups until half of it
    is done, and the first of them alone until the end. The first number is that of --groups."""
    eval_every: float = 1.0
    """Epochs between evaluations."""
    instability_images: int = 100
    """Validation images on which the matching instability is measured, in all groups; 0: off. An
    image takes the time of K decoders."""
    early_stop: int | None = None
    """Evaluations without a better AP after which training stops."""
    save_every: int | None = None
    """Steps between checkpoints, besides those at every evaluation and every five minutes."""
    seed: int = 42
    """Seed of weights, data order and augmentation."""
    workers: int | None = None
    """Processes that load images; None: one for each spare processor core, 8 at most."""
    threads: int | None = None
    """Processor threads of the computation; None: torch's choice."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""

    def __post_init__(self) -> None:
        if isinstance(self.lr_drop, Real):
            object.__setattr__(self, "lr_drop", (self.lr_drop,))
        # A configuration file has a list.
        elif isinstance(self.lr_drop, list):
            object.__setattr__(self, "lr_drop", tuple(self.lr_drop))
        if isinstance(self.freeze, str):
            object.__setattr__(self, "freeze", (self.freeze,))
        elif isinstance(self.freeze, list):
            object.__setattr__(self, "freeze", tuple(self.freeze))
        self._check_types()
        for name, (low, high) in RANGES.items():
            expect_in_range(name, getattr(self, name), low, high)
        expect_positive(
            epochs=self.epochs, minutes=self.minutes, eval_every=self.eval_every, clip=self.clip
        )
        expect_not_negative(
            lr=self.lr,
            backbone_lr=self.backbone_lr,
            decoder_lr=self.decoder_lr,
            weight_decay=self.weight_decay,
        )
        if self.batch % self.accumulate:
            raise UsageError(
                f"a batch of {self.batch} images cannot be divided into "
                f"{self.accumulate} equal micro-batches",
                remedy="choose --accumulate so that it divides --batch",
            )
        if self.ema is not None and not 0 < self.ema < 1:
            raise UsageError(f"ema must be between 0 and 1, not {self.ema}")
        if self.ema_warmup is not None and self.ema is None:
            raise UsageError(
                f"--ema-warmup {self.ema_warmup} has no effect without --ema",
                remedy="choose a decay, such as --ema 0.993, or --ema-warmup None",
            )
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise UsageError(
                f"layer-decay must be greater than 0 and at most 1, not {self.layer_decay}"
            )
        if set(self.freeze) == set(PARTS):
            raise UsageError(
                "everything is frozen, so nothing is trained",
                remedy="leave one part or more out of --freeze",
            )
        if self.cache_features and "backbone" not in self.freeze:
            raise UsageError(
                "--cache-features keeps what the frozen backbone returns, and it is not frozen",
                remedy="add --freeze backbone, or --freeze backbone encoder, or turn the cache off "
                "with --no-cache-features",
            )
        if self.cache_features and self.augment not in ("flip", "none"):
            raise UsageError(
                f"--augment {self.augment} changes the images in every epoch, so their features "
                "cannot be cached",
                remedy="choose --augment flip or none, or turn the cache off with "
                "--no-cache-features",
            )
        if self.groups_schedule is not None:
            parse_groups_schedule(self.groups_schedule)
        if self.fsdp:
            self._check_fsdp()
        self._check_lr_drop()

    def _check_types(self) -> None:
        """Raise `UsageError` for a value of another type than that of its field.

        Numbers of NumPy become numbers of Python, because config.yaml records them.
        """
        for field in fields(self):
            value = getattr(self, field.name)
            kind = KINDS[field.name]
            if value is None and kind.optional:
                continue
            if field.name == "lr_drop":
                is_valid = isinstance(value, tuple) and all(map(is_number, value))
                value = tuple(map(float, value)) if is_valid else value
            elif kind.type is tuple:
                is_valid = isinstance(value, tuple) and all(x in kind.choices for x in value)
                # The order does not matter, and config.yaml has the same one.
                value = tuple(x for x in kind.choices if x in value) if is_valid else value
            elif kind.type is int:
                is_valid = is_number(value) and isinstance(value, Integral)
                value = int(value) if is_valid else value
            elif kind.type is float:
                is_valid = is_number(value)
                is_python = isinstance(value, int | float)
                value = float(value) if is_valid and not is_python else value
            elif kind.choices:
                is_valid = value in kind.choices
            else:
                is_valid = isinstance(value, kind.type)
            if not is_valid:
                raise UsageError(f"{option(field.name)} must be {kind}, not {value!r}")
            object.__setattr__(self, field.name, value)

    def _check_fsdp(self) -> None:
        """Raise `UsageError` for what does not work with sharded parameters."""
        for name in ("groups_per_step", "groups_schedule"):
            if getattr(self, name) is not None:
                flag = f"--{option(name)}"
                raise UsageError(
                    f"{flag} needs the parameters of all groups in every process, and --fsdp "
                    "divides them",
                    remedy=f"turn one off: {flag} None, or --no-fsdp",
                )
        if self.compile:
            raise UsageError(
                "--compile and --fsdp do not work together",
                remedy="leave out --compile, or turn off FSDP with --no-fsdp",
            )

    def _check_lr_drop(self) -> None:
        """Raise `UsageError` for drops that never happen, or whose meaning is not clear."""
        if self.schedule == "cosine":
            if self.lr_drop not in ((), DEFAULT_LR_DROP):
                raise UsageError(
                    "lr-drop has no effect on the cosine schedule",
                    remedy="leave out --lr-drop, or choose --schedule step",
                )
            return
        has_epochs = self.steps is None and self.minutes is None
        for drop in self.lr_drop:
            number = f"{drop:g}"
            if not 0 < drop < float("inf"):
                raise UsageError(f"lr-drop must be greater than 0, not {number}")
            if drop == 1:
                raise UsageError(
                    "lr-drop 1 is not clear: as a fraction, it is the end of the training",
                    remedy=f"for the first epoch of {self.epochs:g}, "
                    f"write --lr-drop {_short(1 / self.epochs)}"
                    if has_epochs and self.epochs > 1
                    else "write a fraction of the training, such as --lr-drop 0.9",
                )
            if drop < 1:
                continue
            if not has_epochs:
                length = f"{self.steps} steps" if self.steps else f"{self.minutes:g} minutes"
                fraction = drop / self.steps if self.steps and drop < self.steps else 0.9
                raise UsageError(
                    f"lr-drop {number} is a number of epochs, and this training takes {length}",
                    remedy=f"write a fraction of the training, such as "
                    f"--lr-drop {_short(fraction)}",
                )
            if drop >= self.epochs:
                raise UsageError(
                    f"lr-drop {number} never happens, because the training has "
                    f"{self.epochs:g} epochs",
                    remedy="write an epoch before the end, or a fraction of the training, such as "
                    "--lr-drop 0.9",
                )

    @property
    def lr_drop_fractions(self) -> tuple[float, ...]:
        """`lr_drop` as fractions of the training, between 0 and 1."""
        return tuple(drop / self.epochs if drop > 1 else drop for drop in self.lr_drop)

    def groups_at(self, progress: float) -> int | None:
        """Return K at a fraction of the training, None without a ``groups_schedule``."""
        if self.groups_schedule is None:
            return None
        stages = parse_groups_schedule(self.groups_schedule)
        for groups, until in stages:
            if progress < until:
                return groups
        return stages[-1][0]

    def as_flags(self) -> list[str]:
        """Return the options of `groupdetr train` that give these settings."""
        flags: list[str] = []
        length = "minutes" if self.minutes is not None else "steps" if self.steps else "epochs"
        for field in fields(self):
            name = field.name.replace("_", "-")
            value = getattr(self, field.name)
            if field.name in LENGTHS and field.name != length:
                continue
            if field.name == "lr_drop" and self.schedule == "cosine":
                continue
            if isinstance(value, tuple):
                if value != field.default or field.name == "lr_drop":
                    flags += [f"--{name}", *map(str, value)]
            elif not isinstance(value, bool):
                flags += [f"--{name}", str(value)]
            elif value != field.default:
                flags.append(f"--{name}" if value else f"--no-{name}")
        return flags

    def total_steps(self, num_images: int) -> int | None:
        """Return the optimizer steps of the training; None if it ends after some minutes."""
        if self.minutes is not None:
            return None
        return self.steps or max(1, round(self.epochs * num_images / self.batch))


class SettingsOptions(TypedDict, total=False):
    """The fields of `Settings` as keywords of `groupdetr.train`. ``batch`` may also be "auto"."""

    epochs: float
    steps: int | None
    minutes: float | None
    batch: int | Literal["auto"]
    accumulate: int
    imgsz: int
    augment: str
    multi_scale: Literal["off", "per-image", "per-batch"]
    lr: float
    backbone_lr: float
    decoder_lr: float | None
    layer_decay: float | None
    weight_decay: float
    schedule: Literal["step", "cosine"]
    lr_drop: tuple[float, ...]
    warmup: int
    clip: float
    ema: float | None
    ema_warmup: int | None
    precision: Literal["auto", "fp32", "bf16"]
    freeze: Sequence[Part]
    cache_features: bool
    compile: bool
    recompute: bool
    fsdp: bool
    group_chunk: int | None
    groups_per_step: int | None
    groups_schedule: str | None
    eval_every: float
    instability_images: int
    early_stop: int | None
    save_every: int | None
    seed: int
    workers: int | None
    threads: int | None
    device: str


GEOMETRIC = ("detr", "lsj", "flip", "none")  # augmentations that move the objects of an image
MOSAIC = "mosaic"  # this one puts four images together
PHOTOMETRIC = "photometric"  # this one changes the colours
# What may follow a geometric one, in this order
_FOLLOWING = ("", f"+{MOSAIC}", f"+{PHOTOMETRIC}", f"+{MOSAIC}+{PHOTOMETRIC}")
AUGMENTATIONS = (*(name + following for following in _FOLLOWING for name in GEOMETRIC), "petr")


@dataclass(frozen=True)
class Kind:
    """What the values of a field are."""

    type: type
    optional: bool = False  # True: None is a value, too
    choices: tuple[str, ...] = ()
    form: str = ""  # what an error message says instead of the choices, if they are many

    def __str__(self) -> str:
        """Return the kind as an error message names it."""
        if self.form:
            return self.form
        if self.choices:
            choice = " or ".join(self.choices)
            return f"a list of {choice}" if self.type is tuple else choice
        names = {int: "a whole number", float: "a number", bool: "True or False"}
        name = names.get(self.type, "a text")
        if self.type is tuple:
            name = "one or more numbers"
        return f"{name} or None" if self.optional else name


_WHOLE = Kind(int)
_NUMBER = Kind(float)
KINDS: dict[str, Kind] = {
    "epochs": _NUMBER,
    "steps": Kind(int, optional=True),
    "minutes": Kind(float, optional=True),
    "batch": _WHOLE,
    "accumulate": _WHOLE,
    "imgsz": _WHOLE,
    "augment": Kind(
        str,
        choices=AUGMENTATIONS,
        form=f"{', '.join(GEOMETRIC)}, each with +{MOSAIC}, +{PHOTOMETRIC} or both in this order, "
        "or petr",
    ),
    "multi_scale": Kind(str, choices=("off", "per-image", "per-batch")),
    "lr": _NUMBER,
    "backbone_lr": _NUMBER,
    "decoder_lr": Kind(float, optional=True),
    "layer_decay": Kind(float, optional=True),
    "weight_decay": _NUMBER,
    "schedule": Kind(str, choices=("step", "cosine")),
    "lr_drop": Kind(tuple),
    "warmup": _WHOLE,
    "clip": _NUMBER,
    "ema": Kind(float, optional=True),
    "ema_warmup": Kind(int, optional=True),
    "precision": Kind(str, choices=("auto", "fp32", "bf16")),
    "freeze": Kind(tuple, choices=PARTS),
    "cache_features": Kind(bool),
    "compile": Kind(bool),
    "recompute": Kind(bool),
    "fsdp": Kind(bool),
    "group_chunk": Kind(int, optional=True),
    "groups_per_step": Kind(int, optional=True),
    "groups_schedule": Kind(str, optional=True),
    "eval_every": _NUMBER,
    "instability_images": _WHOLE,
    "early_stop": Kind(int, optional=True),
    "save_every": Kind(int, optional=True),
    "seed": _WHOLE,
    "workers": Kind(int, optional=True),
    "threads": Kind(int, optional=True),
    "device": Kind(str),
}

# The smallest and the largest value. Larger ones are mistakes that no machine could compute, or
# that libraries cannot hold.
MANY = 2**31 - 1
RANGES: dict[str, tuple[int, int]] = {
    "epochs": (0, 1_000_000),
    "steps": (1, MANY),
    "minutes": (0, 10_000_000),
    "batch": (1, 1_000_000),
    "accumulate": (1, 1_000_000),
    "imgsz": (16, 16_384),
    "warmup": (0, MANY),
    "ema_warmup": (1, MANY),
    "group_chunk": (1, MANY),
    "groups_per_step": (1, MANY),
    "eval_every": (0, 1_000_000),
    "instability_images": (0, MANY),
    "early_stop": (1, MANY),
    "save_every": (1, MANY),
    "seed": (0, 2**63 - 1),
    "workers": (0, 1024),
    "threads": (1, 4096),
}


def with_changes(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """Return the settings with the options that a user has given, by the names of the fields.

    One of epochs, steps and minutes replaces the others. A schedule that is given without lr_drop
    has the default drops. `UsageError` for options that do not act together.

    >>> with_changes(Settings(steps=100), {"epochs": 3}).steps is None
    True
    """
    lengths = [name for name in LENGTHS if changes.get(name) is not None]
    if len(lengths) > 1:
        raise UsageError(
            f"--{lengths[0]} and --{lengths[1]} both say how long the training is",
            remedy=f"give --{lengths[0]} or --{lengths[1]}",
        )
    implied: dict[str, Any] = {}
    if lengths:
        implied = {name: None for name in ("steps", "minutes") if name not in lengths}
    if "schedule" in changes and "lr_drop" not in changes:
        if changes["schedule"] != settings.schedule:
            implied["lr_drop"] = DEFAULT_LR_DROP
    elif lengths and "lr_drop" not in changes:
        # Epochs of the former length may not exist in the new one.
        latest = max(settings.lr_drop, default=0)
        if latest > 1 and (lengths != ["epochs"] or latest >= changes["epochs"]):
            implied["lr_drop"] = settings.lr_drop_fractions
    return replace(settings, **{**implied, **changes})


def parse_groups_schedule(text: str) -> tuple[tuple[int, float], ...]:
    """Return the stages of a schedule of groups: K, and the fraction of the training at its end.

    `UsageError` unless K falls from stage to stage, and the last fraction is 1.

    >>> parse_groups_schedule("6:0.5,1:1")
    ((6, 0.5), (1, 1.0))
    """
    stages = []
    for stage in text.split(","):
        groups, _, until = stage.partition(":")
        try:
            stages.append((int(groups), float(until)))
        except ValueError:
            stages = [(0, 0.0)]
            break
    numbers = [groups for groups, _ in stages]
    ends = [until for _, until in stages]
    is_falling = numbers == sorted(set(numbers), reverse=True) and numbers[-1] >= 1
    is_rising = ends == sorted(set(ends)) and ends[0] > 0 and ends[-1] == 1
    if not (is_falling and is_rising):
        raise UsageError(
            f"groups-schedule cannot be {text!r}: it is a list of K:FRACTION, in which K falls, "
            "and the fraction rises to 1",
            remedy="for example --groups-schedule 6:0.5,1:1, which trains six groups until half "
            "of the training is done, and one group until its end",
        )
    return tuple(stages)


def option(field: str) -> str:
    """Return the name of a field as an option: eval_every is eval-every."""
    return field.replace("_", "-")


def is_number(value: object) -> bool:
    """True for a real number. A bool is none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def expect_in_range(name: str, value: float | None, low: int, high: int) -> None:
    """Raise `UsageError` unless an option is None or from ``low`` to ``high``, both included."""
    if value is not None and not (is_number(value) and low <= value <= high):
        raise UsageError(f"{option(name)} must be from {low} to {high}, not {value!r}")


def expect_whole_number(name: str, value: int | None, low: int, high: int) -> None:
    """Raise `UsageError` unless an option is None or a whole number from ``low`` to ``high``."""
    expect_in_range(name, value, low, high)
    if value is not None and not isinstance(value, Integral):
        raise UsageError(f"{option(name)} must be a whole number, not {value!r}")


def expect_positive(**options: float | None) -> None:
    """Raise `UsageError` for the first option that is given and is not a number above zero.

    Example: ``expect_positive(imgsz=imgsz, batch=batch)``.
    """
    for name, value in options.items():
        if value is not None and not (is_number(value) and 0 < value < float("inf")):
            raise UsageError(f"{option(name)} must be a finite number above 0, not {value!r}")


def expect_not_negative(**options: float | None) -> None:
    """Raise `UsageError` for the first option that is given and is negative or not a number."""
    for name, value in options.items():
        if value is not None and not (is_number(value) and 0 <= value < float("inf")):
            raise UsageError(f"{option(name)} must be a finite number from 0 up, not {value!r}")


def _short(fraction: float) -> str:
    """Return a fraction with three digits, for a message."""
    return f"{fraction:.3g}"


# The settings of `DEFAULT_MODEL`, so that `groupdetr train --help` need not import the model.
DEFAULT_SETTINGS = Settings(epochs=50, lr_drop=(40 / 50,))
