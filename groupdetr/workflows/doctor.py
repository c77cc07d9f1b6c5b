"""`groupdetr doctor`: this machine, and a test that the groups of a detector are isolated."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass

import torch

from groupdetr.analysis.isolation import DetectorIsolation, measure
from groupdetr.console.output import create_console
from groupdetr.engine.accelerator import create_accelerator, environment
from groupdetr.errors import UsageError
from groupdetr.registry import create_model
from groupdetr.settings import MANY, Settings, expect_whole_number
from groupdetr.structures.json_object import JsonObject
from groupdetr.tasks.trained_detector import TrainedDetector

DEFAULT_GROUPS = 3  # K of a model that is not a run


@dataclass(frozen=True)
class DoctorResult:
    """The result of `doctor`: the environment, the measurements and the exit code."""

    model: str
    device: str
    environment: JsonObject
    isolation: DetectorIsolation

    @property
    def exit_code(self) -> int:
        """0 if the groups are separate, else 1."""
        return 0 if self.isolation.holds else 1

    def to_json(self) -> JsonObject:
        """Return the environment, the three measurements, and whether the groups are isolated."""
        return {
            "environment": self.environment,
            "device": self.device,
            "model": self.model,
            "isolation": asdict(self.isolation),
            "holds": self.isolation.holds,
        }

    def show(self) -> None:
        """Print the environment and the three measurements."""
        console = create_console()
        for name, value in self.environment.items():
            if name == "packages":
                value = ", ".join(f"{package} {version}" for package, version in value.items())
            elif isinstance(value, list):
                value = ", ".join(value) or "none"
            console.print(f"{name:<10}{value}")
        console.print(f"{'device':<10}{self.device}")
        console.print(
            f"\ngroup isolation of {self.model}: "
            "the largest difference of any logit or box coordinate"
        )
        measurements = {
            "leak": "in the other groups, when the queries of one group are changed",
            "separate_passes": "between all groups in one pass and each group in a pass of its own",
            "inference": "between inference and the primary group in training",
        }
        for name, explanation in measurements.items():
            console.print(f"  {getattr(self.isolation, name):.1e}  {explanation}")
        if self.isolation.holds:
            console.print("groups are separate")
        else:
            console.print("GROUPS LEAK INTO EACH OTHER: this is not Group DETR")


def doctor(*, model: str, groups: int | None, device: str) -> DoctorResult:
    """Measure the isolation of the groups of a detector.

    The arguments are the options of `groupdetr doctor`.
    """
    expect_whole_number("groups", groups, 1, MANY)
    torch_device = create_accelerator(Settings(device=device)).device
    torch.manual_seed(0)
    if os.path.exists(model):
        if groups is not None:
            raise UsageError(
                "--groups has no effect on a run, which has its own groups",
                model,
                "leave out --groups",
            )
        network = TrainedDetector(model, str(torch_device)).model
    else:
        network = create_model(model, num_groups=groups or DEFAULT_GROUPS).to(torch_device)
    isolation = measure(network)
    return DoctorResult(model, str(torch_device), environment(), isolation)
