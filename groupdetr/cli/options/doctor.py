"""groupdetr doctor: this machine, and a proof that groups do not leak into each other."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Options:
    """Show the environment and test a detector: perturbing one group moves no other, K groups in one pass equal K
    passes, inference equals the primary group. Exit code 1 if they do not."""

    model: str = "conditional-detr-tiny"
    """A preset, an experiment, or a run."""
    groups: int = 3
    """K of the test, if the model is not a run."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""
    json: bool = False
    """Print one JSON object."""

    def run(self) -> int:
        from groupdetr.engine.accelerator import accelerator, environment
        from groupdetr.settings import Settings

        device = accelerator(Settings(device=self.device)).device
        result = self.isolation(device)
        content = {
            "environment": environment(),
            "device": str(device),
            "model": self.model,
            "isolation": asdict(result),
        }
        if self.json:
            print(json.dumps({**content, "holds": result.holds}, indent=1))
        else:
            show(content, result.holds)
        return 0 if result.holds else 1

    def isolation(self, device: Any) -> Any:
        from pathlib import Path

        import torch

        from groupdetr.analysis.isolation import measure
        from groupdetr.create import create_model
        from groupdetr.tasks.detection2d.prediction import Trained

        torch.manual_seed(0)
        if Path(self.model).exists():
            return measure(Trained(self.model, str(device)).model)
        return measure(create_model(self.model, num_groups=self.groups).to(device))


def show(content: dict[str, Any], holds: bool) -> None:
    for name, value in content["environment"].items():
        if name == "packages":
            value = ", ".join(f"{package} {version}" for package, version in value.items())
        print(f"{name:<10}{', '.join(value) or 'none' if isinstance(value, list) else value}")
    print(f"{'device':<10}{content['device']}")
    print(
        f"\ngroup isolation of {content['model']}: the largest change of any logit or box coordinate"
    )
    for name, about in (
        ("leak", "in other groups, when the queries of one are changed"),
        ("apart", "between all groups in one pass and each by itself"),
        ("inference", "between inference and the primary group in training"),
    ):
        print(f"  {content['isolation'][name]:.1e}  {about}")
    print("groups are separate" if holds else "GROUPS LEAK INTO EACH OTHER: this is not Group DETR")
