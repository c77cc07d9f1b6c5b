"""What K costs: time and memory of a training step with K groups against K = 1, part by part.

    python benchmarks/step.py --side 320 --groups 11 [--group-chunk 1] [--device cuda] [--precision bf16]

Figures are process times of the fastest of several rounds, K in turns; ratios are the result. On a GPU, wall time
after synchronisation and the allocator's peak.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import tyro
from torch.utils._python_dispatch import TorchDispatchMode

import groupdetr
from groupdetr.chunked import ByChunks
from groupdetr.engine.machine import environment


@dataclass
class Options:
    model: str = "conditional-detr-r50"
    side: int = 320
    batch: int = 2
    groups: int = 11
    group_chunk: int | None = None  # K groups in chunks of so many, too
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


class Kept:
    """Bytes that graphs hold for backward, each storage once, those ``apart`` not counted; and the most there were."""

    def __init__(self, apart: Iterable[torch.Tensor]) -> None:
        self.times = Counter(x.untyped_storage().data_ptr() for x in apart)
        self.bytes = self.peak = 0

    def change(self, x: torch.Tensor, by: int) -> None:
        storage = x.untyped_storage()
        before, after = self.times[storage.data_ptr()], self.times[storage.data_ptr()] + by
        self.times[storage.data_ptr()] = after
        self.bytes += storage.nbytes() * ((after > 0) - (before > 0))
        self.peak = max(self.peak, self.bytes)


class Held:
    """A tensor in a graph, until the graph is gone."""

    def __init__(self, kept: Kept, x: torch.Tensor) -> None:
        self.kept, self.x = kept, x
        kept.change(x, 1)

    def __del__(self) -> None:
        self.kept.change(self.x, -1)


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

    def autocast(self) -> AbstractContextManager[object]:
        device = torch.device(self.options.device).type
        return torch.autocast(device, torch.bfloat16) if self.options.precision == "bf16" else nullcontext()

    def parts(self) -> Iterator[str]:
        """Of a step, each named when it is done."""
        with self.autocast():
            outputs = self.model(self.images, self.targets)
        yield "forward"
        loss = sum(self.criterion(outputs, self.targets).values())
        yield "criterion"
        loss.backward()  # type: ignore[union-attr]
        yield "backward"

    def kept_for_backward(self) -> float:
        """MiB that are kept at once."""
        kept = Kept(self.model.parameters())
        with torch.autograd.graph.saved_tensors_hooks(lambda x: Held(kept, x), lambda held: held.x):
            self.run()
        return kept.peak / 2**20

    def run(self) -> dict[str, float]:
        self.model.zero_grad(set_to_none=True)
        marks, names = [clock(self.options.device)], []
        for name in self.parts():
            marks.append(clock(self.options.device))
            names.append(name)
        return {"step": marks[-1] - marks[0], **{name: b - a for name, a, b in zip(names, marks, marks[1:])}}

    def operations(self) -> int:
        with Count() as count:
            self.run()
        return count.operations


class ChunkedStep(Step):
    """With the groups in chunks."""

    def __init__(self, options: Options, groups: int, chunk: int) -> None:
        super().__init__(options, groups)
        self.learner = ByChunks(self.model, self.criterion, chunk)

    def parts(self) -> Iterator[str]:
        with self.autocast():
            loss, _ = self.learner(self.images, self.targets)
        yield "all but what follows"
        loss.backward()
        yield "backward of encoder and backbone"


def clock(device: str) -> float:
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    steps = {f"K={k}": Step(options, k) for k in (1, options.groups)}
    if options.group_chunk is not None:
        name = f"K={options.groups} in chunks of {options.group_chunk}"
        steps[name] = ChunkedStep(options, options.groups, options.group_chunk)
    for step in steps.values():
        step.run()
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in steps}
    for _ in range(options.rounds):
        for name, step in steps.items():
            rounds[name].append(step.run())
    found = {name: figures(step, rounds[name]) for name, step in steps.items()}
    one = found["K=1"]
    ratios = {
        f"ratio, {name}": {part: round(value / one[part], 2) for part, value in about.items() if part in one}
        for name, about in found.items()
        if name != "K=1"
    }
    print(json.dumps({"options": vars(options), "environment": environment(), **found, **ratios}, indent=1))


def figures(step: Step, rounds: list[dict[str, float]]) -> dict[str, float]:
    best = {part: 1000 * min(r[part] for r in rounds) for part in rounds[0]}
    about = {"operations": step.operations(), "kept_mib": step.kept_for_backward()}
    if step.options.device != "cpu":
        step.model.zero_grad(set_to_none=True)
        torch.cuda.reset_peak_memory_stats()
        step.run()
        about["peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
    return {name: round(value, 1) for name, value in {**best, **about}.items()}


if __name__ == "__main__":
    main(tyro.cli(Options))
