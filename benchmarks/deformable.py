"""What deformable attention costs, in PyTorch and in Triton, against the form by grid_sample that repositories ship.

    python benchmarks/deformable.py [--device cuda] [--rounds 9] [--program 128]

Two places where it stands: an encoder, whose tokens look around themselves, and a decoder of 11 groups of 900 queries.
Each round runs every variant once, in random order; figures are medians, of process time on a CPU and of wall time
after synchronisation on a GPU, and ratios are medians of the ratios within rounds. On a GPU the shapes are DINO's
(800 x 1333, two images), every variant runs in fp32 and with a value in bf16, and its time is compared with the floor:
the bytes that corners and their gradients are, at the rates of L2 and of its atomics. The rates are assumptions, to be
measured on the card in hand.
"""

from __future__ import annotations

import importlib
import json
import random
import statistics
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
import tyro
from torch import Tensor
from torch.nn import functional as F

from groupdetr.attention.deformable import Attend, Shapes, in_pytorch, in_triton
from groupdetr.engine.machine import environment


@dataclass
class Options:
    device: str = "cpu"
    rounds: int = 9
    threads: int = 1
    groups: int = 11
    images: int = 2
    gather: float = 5.5  # TB/s that L2 is read at
    atomics: float = 2.5  # TB/s that it adds at
    program: int = 128  # threads of a program of the Triton kernels
    seed: int = 0

    @property
    def shapes(self) -> Shapes:
        """Strides 8 to 64 of 256 x 256 on a CPU, of 800 x 1333 on a GPU."""
        if self.device == "cpu":
            return ((32, 32), (16, 16), (8, 8), (4, 4))
        return ((100, 167), (50, 84), (25, 42), (13, 21))


HEADS, CHANNELS, POINTS = 8, 32, 4


def by_grid_sample(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """What others ship: samples of all levels side by side, weighted, summed; in 32 bits throughout."""
    images, _, heads, channels = value.shape
    queries = locations.shape[1]
    grid = (2 * locations - 1).transpose(1, 2).flatten(0, 1)  # [B*heads,Q,L,P,2]
    samples, dtype = [], value.dtype
    for level, tokens in enumerate(value.to(grid.dtype).split([h * w for h, w in shapes], dim=1)):
        maps = tokens.flatten(2).transpose(1, 2).reshape(images * heads, channels, *shapes[level])
        samples.append(F.grid_sample(maps, grid[:, :, level], align_corners=False))  # [B*heads,C,Q,P]
    shares = weights.transpose(1, 2).flatten(0, 1).flatten(2).unsqueeze(1)
    seen = (torch.stack(samples, dim=-2).flatten(-2) * shares).sum(-1)
    return seen.reshape(images, heads * channels, queries).transpose(1, 2).contiguous().to(dtype)


def by_deformops() -> Attend | None:
    """The kernels of the package of that name, if it is installed."""
    try:
        from deformops.registry import msda  # type: ignore[import-not-found]
    except ImportError:
        return None

    def attend(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
        sides = torch.tensor(shapes, device=value.device)
        starts = sides.prod(1).cumsum(0) - sides.prod(1)
        return msda(value, sides, starts, locations, weights.flatten(3)).flatten(2)

    return attend


def variants(device: str, program: int) -> dict[str, Attend]:
    found: dict[str, Attend | None] = {"grid_sample": by_grid_sample, "PyTorch": in_pytorch}
    if device != "cpu":
        found |= {"compiled": torch.compile(in_pytorch), "Triton": in_triton, "deformops": by_deformops()}
        deformable_triton = importlib.import_module("groupdetr.attention.deformable_triton")
        deformable_triton.THREADS = program  # type: ignore[attr-defined]
    return {name: attend for name, attend in found.items() if attend}


class Case:
    """Inputs of one place; ``dtype`` is that of the value."""

    def __init__(self, place: str, dtype: torch.dtype, options: Options) -> None:
        torch.manual_seed(options.seed)
        self.place, self.dtype, self.options, self.shapes = place, dtype, options, options.shapes
        tokens = sum(h * w for h, w in self.shapes)
        if place == "encoder":  # every token looks a few pixels of each level around itself
            centres = torch.cat([self.grid(h, w) for h, w in self.shapes]).expand(options.images, -1, -1)
            reach = 2.0 / torch.tensor([shape[::-1] for shape in self.shapes]).unsqueeze(1)
        else:  # every query looks about a box, a fifth of the image wide
            centres = torch.rand(options.images, options.groups * 900, 2)
            reach = torch.full((1, 1, 1), 0.1)
        self.queries = centres.shape[1]
        per_head = (options.images, self.queries, HEADS, len(self.shapes), POINTS)
        locations = centres[:, :, None, None, None] + torch.randn(*per_head, 2) * reach
        weights = torch.randn(*per_head[:3], len(self.shapes) * POINTS).softmax(-1).reshape(per_head)
        value = torch.randn(options.images, tokens, HEADS, CHANNELS)
        made = value.to(dtype), locations, weights, torch.randn(options.images, self.queries, HEADS * CHANNELS)
        *inputs, grad = (x.to(options.device) for x in made)
        self.inputs, self.grad = [x.requires_grad_() for x in inputs], grad.to(dtype)

    @staticmethod
    def grid(height: int, width: int) -> Tensor:
        y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        return torch.stack([x / width, y / height], dim=-1).flatten(0, 1)

    def forward(self, attend: Attend) -> Tensor:
        value, locations, weights = self.inputs
        return attend(value, self.shapes, locations, weights)

    def run(self, attend: Attend) -> dict[str, float]:
        marks = [clock(self.options.device)]
        out = self.forward(attend)
        marks.append(clock(self.options.device))
        torch.autograd.grad(out, self.inputs, self.grad)
        marks.append(clock(self.options.device))
        return {"forward": marks[1] - marks[0], "backward": marks[2] - marks[1], "both": marks[2] - marks[0]}

    def kept(self, attend: Attend) -> float:
        """MiB kept for backward, each storage once, inputs not counted."""
        own = {x.untyped_storage().data_ptr() for x in self.inputs}
        kept: dict[int, int] = {}

        def pack(x: Tensor) -> Tensor:
            if x.untyped_storage().data_ptr() not in own:
                kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            self.forward(attend)
        return sum(kept.values()) / 2**20

    def peak(self, attend: Attend) -> float:
        """MiB that the allocator needs beyond the inputs, forward and backward."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self.run(attend)
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    def floor(self) -> dict[str, float]:
        """Seconds: forward reads four corners of each sample, backward reads them again and adds to them in fp32."""
        numbers = self.inputs[2].numel() * 4 * CHANNELS
        gather = numbers * self.dtype.itemsize / (self.options.gather * 1e12)
        backward = gather + numbers * 4 / (self.options.atomics * 1e12)
        return {"forward": gather, "backward": backward, "both": gather + backward}

    def error(self, attend: Attend) -> float:
        """Largest difference from the form by grid_sample, out and gradients, in parts of their largest number."""
        found, expected = (
            (out, *torch.autograd.grad(out, self.inputs, self.grad))
            for out in (self.forward(attend), self.forward(by_grid_sample))
        )
        pairs = ((a.detach().float(), b.detach().float()) for a, b in zip(found, expected))
        return max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)


def clock(device: str) -> float:
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def measure(case: Case, attends: dict[str, Attend]) -> dict[str, dict[str, float]]:
    options = case.options
    found: dict[str, dict[str, float]] = {name: {"error": case.error(attend)} for name, attend in attends.items()}
    rounds = []
    for _ in range(options.rounds):
        order = random.sample(list(attends), len(attends))
        rounds.append({name: case.run(attends[name]) for name in order})
    for name, attend in attends.items():
        about = found[name]
        for part in ("forward", "backward", "both"):
            about[f"{part}_ms"] = 1000 * statistics.median(r[name][part] for r in rounds)
            about[f"{part}_speedup"] = statistics.median(r["grid_sample"][part] / r[name][part] for r in rounds)
            if options.device != "cpu":
                about[f"{part}_of_floor"] = case.floor()[part] * 1000 / about[f"{part}_ms"]
        about["kept_mib"] = case.kept(attend)
        if options.device != "cpu":
            about["peak_mib"] = case.peak(attend)
    return found


def table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    columns = list(next(iter(next(iter(results.values())).values())))
    lines = ["| case | variant | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for case, attends in results.items():
        for name, about in attends.items():
            lines.append(f"| {case} | {name} | " + " | ".join(f"{about[c]:.3g}" for c in columns) + " |")
    return "\n".join(lines)


def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    random.seed(options.seed)
    attends = variants(options.device, options.program)
    dtypes = [torch.float32] if options.device == "cpu" else [torch.float32, torch.bfloat16]
    results: dict[str, Any] = {}
    for place in ("encoder", "decoder"):
        for dtype in dtypes:
            case = Case(place, dtype, options)
            results[f"{place}, {case.queries} queries, {str(dtype).removeprefix('torch.')}"] = measure(case, attends)
    print(table(results), file=sys.stderr)
    print(json.dumps({"options": vars(options), "environment": environment(), "results": results}, indent=1))


if __name__ == "__main__":
    main(tyro.cli(Options))
