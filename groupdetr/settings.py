"""Settings of a training: every number that does not belong to the model.

The defaults are those of DETR, with which all official repositories train.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Literal, TypedDict

import tyro

from groupdetr.errors import UsageError

DEFAULT_MODEL = "conditional-detr-r50"  # of `groupdetr train`


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
    """Wall time, evaluation included, instead of epochs; the schedule is stretched to it."""
    batch: Annotated[int, tyro.conf.arg(metavar="INT|auto")] = 16
    """Images of an optimizer step, over all processes and micro-batches.

    auto: the model's own batch. --accumulate and --group-chunk are then chosen so that a step fits
    into the memory of this machine; they do not change the result.
    """
    accumulate: int = 1
    """Micro-batches of a batch (gradient accumulation): less memory, the same result."""
    imgsz: int = 800
    """Shortest side of an image in validation, in pixels; training draws from DETR's sizes scaled
    by it."""
    augment: Literal["detr", "lsj", "flip", "none", "petr"] = "detr"
    """detr: flip and resize, or resize-crop-resize; lsj: flip and large scale jitter, to a square
    of 1024/800 of imgsz; flip: flip only; none: as in validation. For scenes: petr, which resizes,
    crops and flips all images of a sample in the same way, and rotates and scales the world; or
    none."""
    lr: float = 1e-4
    """Learning rate."""
    backbone_lr: float = 1e-5
    """Learning rate of the backbone."""
    layer_decay: float | None = None
    """Factor of the backbone's learning rate, applied once more for every layer before the last;
    None: all layers have the same rate."""
    weight_decay: float = 1e-4
    """Weight decay of AdamW."""
    schedule: Literal["step", "cosine"] = "step"
    """step: a tenth of the learning rate after every lr_drop; cosine: falls smoothly to zero."""
    lr_drop: tuple[float, ...] = (11 / 12,)
    """When the step schedule drops, as fractions of the training."""
    warmup: int = 0
    """Steps over which the learning rate rises from zero."""
    clip: float = 0.1
    """Largest L2 norm of the gradient."""
    ema: float | None = None
    """Decay of an exponential moving average of the weights, used for evaluation; None: off. 0.9997
    is common."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: forward pass under autocast; costs and losses stay in fp32."""
    compile: bool = False
    """Compile the network with torch.compile (minutes of warm-up; a CPU needs a C++ compiler)."""
    recompute: bool = False
    """Gradient checkpointing in encoder, decoder and transformer backbones: less memory, more
    time."""
    group_chunk: int | None = None
    """Groups whose decoder and loss are computed at once: less memory, the same result; None:
    all."""
    eval_every: float = 1.0
    """Epochs between evaluations."""
    instability_images: int = 500
    """Validation images on which the matching instability is measured, in all groups; 0: off."""
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
        if isinstance(self.lr_drop, float | int):
            object.__setattr__(self, "lr_drop", (self.lr_drop,))
        # A configuration file has a list.
        object.__setattr__(self, "lr_drop", tuple(self.lr_drop))
        expect_positive(
            epochs=self.epochs,
            steps=self.steps,
            minutes=self.minutes,
            batch=self.batch,
            accumulate=self.accumulate,
            imgsz=self.imgsz,
            eval_every=self.eval_every,
            save_every=self.save_every,
            clip=self.clip,
            early_stop=self.early_stop,
            threads=self.threads,
            group_chunk=self.group_chunk,
        )
        expect_not_negative(
            lr=self.lr,
            backbone_lr=self.backbone_lr,
            weight_decay=self.weight_decay,
            warmup=self.warmup,
            workers=self.workers,
            instability_images=self.instability_images,
        )
        if self.batch % self.accumulate:
            raise UsageError(
                f"a batch of {self.batch} images cannot be divided into "
                f"{self.accumulate} equal micro-batches",
                remedy="choose --accumulate so that it divides --batch",
            )
        if self.ema is not None and not 0 < self.ema < 1:
            raise UsageError(f"ema must be between 0 and 1, not {self.ema}")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise UsageError(
                f"layer-decay must be greater than 0 and at most 1, not {self.layer_decay}"
            )

    def as_flags(self) -> list[str]:
        """Return the options of `groupdetr train` that give these settings."""
        flags: list[str] = []
        for field in fields(self):
            name = field.name.replace("_", "-")
            value = getattr(self, field.name)
            if isinstance(value, tuple):
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
    augment: Literal["detr", "lsj", "flip", "none", "petr"]
    lr: float
    backbone_lr: float
    layer_decay: float | None
    weight_decay: float
    schedule: Literal["step", "cosine"]
    lr_drop: tuple[float, ...]
    warmup: int
    clip: float
    ema: float | None
    precision: Literal["fp32", "bf16"]
    compile: bool
    recompute: bool
    group_chunk: int | None
    eval_every: float
    instability_images: int
    early_stop: int | None
    save_every: int | None
    seed: int
    workers: int | None
    threads: int | None
    device: str


def expect_positive(**options: float | None) -> None:
    """Raise `UsageError` for the first option that is given and is not a number above zero.

    Example: ``expect_positive(imgsz=imgsz, batch=batch)``.
    """
    for name, value in options.items():
        if value is not None and not 0 < value < float("inf"):
            raise UsageError(f"{name.replace('_', '-')} must be greater than 0, not {value}")


def expect_not_negative(**options: float | None) -> None:
    """Raise `UsageError` for the first option that is given and is negative or not a number."""
    for name, value in options.items():
        if value is not None and not 0 <= value < float("inf"):
            raise UsageError(f"{name.replace('_', '-')} must be a number from 0 up, not {value}")


# The settings of `DEFAULT_MODEL`, so that `groupdetr train --help` need not import the model.
DEFAULT_SETTINGS = Settings(epochs=50, lr_drop=(40 / 50,))
