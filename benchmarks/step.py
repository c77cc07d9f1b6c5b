"""What K costs: time and memory of a training step with K groups against K = 1, part by part.

    python benchmarks/step.py --side 320 --groups 11 [--device cuda] [--precision bf16]

Figures are process times of the fastest of several rounds, K in turns; ratios are the result. On a GPU, wall time
after synchronisation and the allocator's peak.
"""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import tyro
from torch.utils._python_dispatch import TorchDispatchMode

import groupdetr
from groupdetr.engine.machine import environment


@dataclass
class Options:
    model: str = "conditional-detr-r50"
    side: int = 320
    batch: int = 2
    groups: int = 11
    objects: int = 7
    rounds: int = 5
    device: str = "cpu"
    precision: str = "fp32"
    threads: int = 1


class Count(TorchDispatchMode):
    """Counts operations."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.operations += 1
        return func(*args, **(kwargs or {}))


class Step:
    """A model and a batch of noise."""

    def __init__(self, options: Options, groups: int) -> None:
        torch.manual_seed(0)
        self.options = options
        self.model = groupdetr.create_model(options.model, num_groups=groups, dropout=0.0).to(options.device)
        self.criterion = groupdetr.create_criterion(self.model)
        pictures = torch.randn(options.batch, 3, options.side, options.side, device=options.device)
        self.images = groupdetr.Images(pictures, pictures.new_zeros(pictures[:, 0].shape, dtype=torch.bool))
        boxes = torch.rand(options.objects, 4, device=options.device) * 0.4 + 0.1
        labels = torch.randint(0, 80, (options.objects,), device=options.device)
        self.targets = [groupdetr.Target(labels, boxes) for _ in range(options.batch)]
        self.kept = 0

    def outputs(self) -> groupdetr.Outputs:
        device = torch.device(self.options.device).type
        autocast = torch.autocast(device, torch.bfloat16) if self.options.precision == "bf16" else nullcontext()
        with autocast:
            return self.model(self.images, self.targets)

    def kept_for_backward(self) -> float:
        """MiB that the forward pass keeps, each storage once, parameters not counted."""
        own = {p.untyped_storage().data_ptr() for p in self.model.parameters()}
        kept: dict[int, int] = {}

        def pack(x: torch.Tensor) -> torch.Tensor:
            if x.untyped_storage().data_ptr() not in own:
                kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            loss = sum(self.criterion(self.outputs(), self.targets).values())
        loss.backward()  # type: ignore[union-attr]
        return sum(kept.values()) / 2**20

    def run(self) -> dict[str, float]:
        self.model.zero_grad(set_to_none=True)
        marks = [clock(self.options.device)]
        outputs = self.outputs()
        marks.append(clock(self.options.device))
        loss = sum(self.criterion(outputs, self.targets).values())
        marks.append(clock(self.options.device))
        loss.backward()  # type: ignore[union-attr]
        marks.append(clock(self.options.device))
        names = ("forward", "criterion", "backward")
        return {"step": marks[-1] - marks[0], **{n: b - a for n, a, b in zip(names, marks, marks[1:])}}

    def operations(self) -> int:
        with Count() as count:
            self.run()
        return count.operations


def clock(device: str) -> float:
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    steps = {k: Step(options, k) for k in (1, options.groups)}
    for step in steps.values():
        step.run()
    rounds: dict[int, list[dict[str, float]]] = {k: [] for k in steps}
    for _ in range(options.rounds):
        for k, step in steps.items():
            rounds[k].append(step.run())
    result: dict[str, object] = {"options": vars(options), "environment": environment()}
    for k, step in steps.items():
        best = {part: 1000 * min(r[part] for r in rounds[k]) for part in rounds[k][0]}
        about = {"operations": step.operations(), "kept_mib": step.kept_for_backward()}
        if options.device != "cpu":
            torch.cuda.reset_peak_memory_stats()
            step.run()
            about["peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
        result[f"K={k}"] = {name: round(value, 1) for name, value in {**best, **about}.items()}
    one, many = (result[f"K={k}"] for k in steps)
    result["ratio"] = {name: round(many[name] / one[name], 2) for name in one}  # type: ignore[index, attr-defined]
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main(tyro.cli(Options))
