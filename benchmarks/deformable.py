"""What deformable attention costs, in PyTorch and in Triton, against the form by grid_sample that repositories ship.

    python benchmarks/deformable.py [--device cuda] [--rounds 9] [--program 128]

Two places where it stands: an encoder, whose tokens look around themselves, and a decoder of 11 groups of 900 queries.
Speed-ups are over the form by grid_sample, of whose result ``error`` is a part. On a GPU the shapes are DINO's
(800 x 1333, two images), every variant runs in fp32 and with a value in bf16, and its time is compared with the floor:
the bytes that corners and their gradients are, at the rates of L2 and of its atomics. The rates are assumptions, to be
measured on the card in hand.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import measure
import torch
import tyro
from torch import Tensor
from torch.nn import functional as F

from groupdetr.modeling.attention.deformable_attention import Attend, Shapes, in_pytorch, in_triton


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
    out: Path | None = None  # JSON

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
        samples.append(
            F.grid_sample(maps, grid[:, :, level], align_corners=False)
        )  # [B*heads,C,Q,P]
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
        found |= {
            "compiled": torch.compile(in_pytorch),
            "Triton": in_triton,
            "deformops": by_deformops(),
        }
        deformable_triton = importlib.import_module(
            "groupdetr.modeling.attention.deformable_triton"
        )
        deformable_triton.THREADS = program  # type: ignore[attr-defined]
    return {name: attend for name, attend in found.items() if attend}


class Case:
    """Inputs of one place; ``dtype`` is that of the value."""

    def __init__(self, place: str, dtype: torch.dtype, options: Options) -> None:
        torch.manual_seed(options.seed)
        self.place, self.dtype, self.options, self.shapes = place, dtype, options, options.shapes
        tokens = sum(h * w for h, w in self.shapes)
        if place == "encoder":  # every token looks a few pixels of each level around itself
            centres = torch.cat([self.grid(h, w) for h, w in self.shapes]).expand(
                options.images, -1, -1
            )
            reach = 2.0 / torch.tensor([shape[::-1] for shape in self.shapes]).unsqueeze(1)
        else:  # every query looks about a box, a fifth of the image wide
            centres = torch.rand(options.images, options.groups * 900, 2)
            reach = torch.full((1, 1, 1), 0.1)
        self.queries = centres.shape[1]
        per_head = (options.images, self.queries, HEADS, len(self.shapes), POINTS)
        locations = centres[:, :, None, None, None] + torch.randn(*per_head, 2) * reach
        weights = (
            torch.randn(*per_head[:3], len(self.shapes) * POINTS).softmax(-1).reshape(per_head)
        )
        value = torch.randn(options.images, tokens, HEADS, CHANNELS)
        made = (
            value.to(dtype),
            locations,
            weights,
            torch.randn(options.images, self.queries, HEADS * CHANNELS),
        )
        *inputs, grad = (x.to(options.device) for x in made)
        self.inputs, self.grad = [x.requires_grad_() for x in inputs], grad.to(dtype)

    @staticmethod
    def grid(height: int, width: int) -> Tensor:
        y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        return torch.stack([x / width, y / height], dim=-1).flatten(0, 1)

    def forward(self, attend: Attend) -> Tensor:
        value, locations, weights = self.inputs
        return attend(value, self.shapes, locations, weights)

    def run(self, attend: Attend) -> measure.Times:
        watch = measure.Watch(self.options.device)
        out = self.forward(attend)
        watch.lap("forward")
        torch.autograd.grad(out, self.inputs, self.grad)
        watch.lap("backward")
        return watch.times

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
        return {"forward": gather, "backward": backward, "all": gather + backward}

    def error(self, attend: Attend) -> float:
        """Largest difference from the form by grid_sample, out and gradients, in parts of their largest number."""
        found, expected = (
            (out, *torch.autograd.grad(out, self.inputs, self.grad))
            for out in (self.forward(attend), self.forward(by_grid_sample))
        )
        pairs = ((a.detach().float(), b.detach().float()) for a, b in zip(found, expected))
        return max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)


def rows(case: Case, attends: dict[str, Attend]) -> dict[str, dict[str, float]]:
    runs = {name: partial(case.run, attend) for name, attend in attends.items()}
    times = measure.interleaved(runs, case.options.rounds, case.options.seed)
    return {name: row(case, attend, times, name) for name, attend in attends.items()}


def row(case: Case, attend: Attend, times: measure.Rounds, name: str) -> dict[str, float]:
    about = {
        "error": case.error(attend),
        "kept, MiB": measure.kept_for_backward(partial(case.run, attend), case.inputs),
    }
    for part in ("forward", "backward", "all"):
        about[f"{part}, ms"] = times.ms(name, part)
        about[f"{part}, speed-up"] = times.speed_up(name, "grid_sample", part)
        if case.options.device != "cpu":
            about[f"{part}, of the floor"] = case.floor()[part] * 1000 / times.ms(name, part)
    return about if case.options.device == "cpu" else {**about, "peak, MiB": case.peak(attend)}


def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    attends = variants(options.device, options.program)
    dtypes = [torch.float32] if options.device == "cpu" else [torch.float32, torch.bfloat16]
    found: dict[str, dict[str, float]] = {}
    for place in ("encoder", "decoder"):
        for dtype in dtypes:
            case = Case(place, dtype, options)
            title = f"{place}, {case.queries} queries, {str(dtype).removeprefix('torch.')}"
            found |= {f"{title}, {name}": about for name, about in rows(case, attends).items()}
    measure.show(options, found, options.out)


if __name__ == "__main__":
    main(tyro.cli(Options))
