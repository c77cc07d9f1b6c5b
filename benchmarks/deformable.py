"""What deformable attention costs, in PyTorch and in Triton, against the usual form.

    python benchmarks/deformable.py [--device cuda] [--rounds 9] [--program 128]

The usual form is the one by grid_sample that repositories ship. There are two cases: an encoder,
in which every token attends to points around itself, and a decoder with 11 groups of 900 queries.
Speed-ups are over the usual form; ``error`` is the largest difference from its results, as a share
of their largest number.

On a GPU the shapes are DINO's (800 x 1333, two images), and every variant runs in fp32 and with a
value in bf16. Its time is compared with a lower bound, the "floor": the bytes of the corner pixels
and of their gradients, divided by the rates at which the L2 cache reads and adds. These rates are
assumptions, which have to be measured on each GPU.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import measure
import torch
from torch import Tensor
from torch.nn import functional as F

from groupdetr.modeling.attention.deformable_attention import Backend, Shapes, in_pytorch, in_triton

HEADS = 8
CHANNELS = 32  # of a head
POINTS = 4  # sampling points of a query on each level, for each head
DECODER_QUERIES = 900  # of a group


@dataclass
class Options:
    device: str = "cpu"
    rounds: int = 9
    threads: int = 1
    groups: int = 11
    images: int = 2
    gather: float = 5.5  # TB/s at which the L2 cache is read
    atomics: float = 2.5  # TB/s at which it adds
    program: int = 128  # threads of a program of the Triton kernels
    seed: int = 0
    quick: bool = False  # fewer groups and rounds
    out: Path | None = None  # JSON

    @property
    def shapes(self) -> Shapes:
        """Strides 8 to 64 of 256 x 256 pixels on a CPU, of 800 x 1333 pixels on a GPU."""
        if self.device == "cpu":
            return ((32, 32), (16, 16), (8, 8), (4, 4))
        return ((100, 167), (50, 84), (25, 42), (13, 21))


QUICK = {"groups": 2, "rounds": 3}


def by_grid_sample(
    value: Tensor, shapes: Shapes, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """The usual form: the samples of all levels are stacked, weighted and summed, in 32 bits."""
    images, _, heads, channels = value.shape
    queries = sampling_locations.shape[1]
    # grid_sample takes locations in [-1,1]. Heads become part of the batch: [B*heads,Q,L,P,2].
    grid = (2 * sampling_locations - 1).transpose(1, 2).flatten(0, 1)
    levels = value.to(grid.dtype).split([height * width for height, width in shapes], dim=1)
    samples = []
    for level, tokens in enumerate(levels):
        maps = tokens.flatten(2).transpose(1, 2).reshape(images * heads, channels, *shapes[level])
        # [B*heads,C,Q,P]
        samples.append(F.grid_sample(maps, grid[:, :, level], align_corners=False))
    weights = attention_weights.transpose(1, 2).flatten(0, 1).flatten(2).unsqueeze(1)
    attended = (torch.stack(samples, dim=-2).flatten(-2) * weights).sum(-1)
    attended = attended.reshape(images, heads * channels, queries)
    return attended.transpose(1, 2).contiguous().to(value.dtype)


def by_deformops() -> Backend | None:
    """Return the kernels of the package deformops, or None if it is not installed."""
    try:
        from deformops.registry import msda  # type: ignore[import-not-found]
    except ImportError:
        return None

    # Cached, because a model computes them once for all of its layers.
    @cache
    def sizes_and_first_tokens(shapes: Shapes, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the sizes of the levels, and the index of the first token of every level."""
        sizes = torch.tensor(shapes, device=device)
        areas = sizes.prod(1)
        return sizes, areas.cumsum(0) - areas

    def backend(
        value: Tensor, shapes: Shapes, sampling_locations: Tensor, attention_weights: Tensor
    ) -> Tensor:
        sizes, first_tokens = sizes_and_first_tokens(shapes, value.device)
        weights = attention_weights.flatten(3)
        return msda(value, sizes, first_tokens, sampling_locations, weights).flatten(2)

    return backend


def variants(device: str, program: int) -> dict[str, Backend]:
    """Return the variants that can run on the device, by name."""
    named: dict[str, Backend] = {"grid_sample": by_grid_sample, "PyTorch": in_pytorch}
    if device == "cpu":
        return named
    named["compiled"] = torch.compile(in_pytorch)
    named["Triton"] = in_triton
    deformops = by_deformops()
    if deformops:
        named["deformops"] = deformops
    deformable_triton = importlib.import_module("groupdetr.modeling.attention.deformable_triton")
    deformable_triton.THREADS = program  # type: ignore[attr-defined]
    return named


class SamplingInputs:
    """Random inputs of deformable attention. ``dtype`` is that of the value."""

    def __init__(self, case: str, dtype: torch.dtype, options: Options) -> None:
        torch.manual_seed(options.seed)
        self.dtype, self.options, self.shapes = dtype, options, options.shapes
        images = options.images
        if case == "encoder":
            # The centres of all tokens; offsets of about two pixels of each level.
            centres = torch.cat([pixel_centres(height, width) for height, width in self.shapes])
            centres = centres.expand(images, -1, -1)
            widths_heights = torch.tensor([(width, height) for height, width in self.shapes])
            offset_scale = 2.0 / widths_heights.unsqueeze(1)
        else:
            # The centres of boxes; offsets of about a tenth of the image.
            centres = torch.rand(images, options.groups * DECODER_QUERIES, 2)
            offset_scale = torch.full((1, 1, 1), 0.1)
        self.num_queries = centres.shape[1]

        levels = len(self.shapes)
        sample_axes = (images, self.num_queries, HEADS, levels, POINTS)
        offsets = torch.randn(*sample_axes, 2) * offset_scale
        locations = centres[:, :, None, None, None] + offsets
        logits = torch.randn(images, self.num_queries, HEADS, levels * POINTS)
        weights = logits.softmax(-1).reshape(sample_axes)
        tokens = sum(height * width for height, width in self.shapes)
        value = torch.randn(images, tokens, HEADS, CHANNELS).to(dtype)
        grad = torch.randn(images, self.num_queries, HEADS * CHANNELS)

        self.inputs = [x.to(options.device).requires_grad_() for x in (value, locations, weights)]
        self.grad = grad.to(options.device).to(dtype)  # gradient of the result

    def forward(self, backend: Backend) -> Tensor:
        value, locations, weights = self.inputs
        return backend(value, self.shapes, locations, weights)

    def run(self, backend: Backend) -> measure.Times:
        """Run forward and backward, and return the times of both."""
        stopwatch = measure.Stopwatch(self.options.device)
        attended = self.forward(backend)
        stopwatch.lap("forward")
        torch.autograd.grad(attended, self.inputs, self.grad)
        stopwatch.lap("backward")
        return stopwatch.times

    def peak(self, backend: Backend) -> float:
        """Return the memory in MiB that the allocator of the GPU needs besides the inputs.

        It is the largest amount during a forward and a backward pass.
        """
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self.run(backend)
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    def floor(self) -> dict[str, float]:
        """Return a lower bound of the times in seconds.

        The forward pass reads the four corner pixels of each sample. The backward pass reads them
        again and adds to their gradients in fp32.
        """
        weights = self.inputs[2]
        numbers = weights.numel() * 4 * CHANNELS
        forward = numbers * self.dtype.itemsize / (self.options.gather * 1e12)
        backward = forward + numbers * 4 / (self.options.atomics * 1e12)
        return {"forward": forward, "backward": backward, "all": forward + backward}

    def error(self, backend: Backend) -> float:
        """Return the largest difference from the usual form, in the result and in gradients.

        Each difference is divided by the largest number of its tensor.
        """
        errors = []
        for actual, expected in zip(self.results(backend), self.results(by_grid_sample)):
            difference = (actual - expected).abs().max()
            errors.append((difference / expected.abs().max()).item())
        return max(errors)

    def results(self, backend: Backend) -> list[Tensor]:
        """Return the result and the gradients of the inputs, in fp32."""
        attended = self.forward(backend)
        gradients = torch.autograd.grad(attended, self.inputs, self.grad)
        return [x.detach().float() for x in (attended, *gradients)]


def pixel_centres(height: int, width: int) -> Tensor:
    """Return the centres of all pixels, x and y in [0,1], row by row: [height*width,2]."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return torch.stack([x / width, y / height], dim=-1).flatten(0, 1)


def compare(inputs: SamplingInputs, backends: dict[str, Backend]) -> dict[str, dict[str, float]]:
    """Return a row of the table for each variant."""
    runs = {name: partial(inputs.run, backend) for name, backend in backends.items()}
    timings = measure.time_interleaved(runs, inputs.options.rounds, inputs.options.seed)
    rows = {}
    for name, backend in backends.items():
        rows[name] = variant_row(inputs, backend, timings, name)
    return rows


def variant_row(
    inputs: SamplingInputs, backend: Backend, timings: measure.Timings, name: str
) -> dict[str, float]:
    on_gpu = inputs.options.device != "cpu"
    row = {
        "error": inputs.error(backend),
        "kept, MiB": measure.saved_for_backward(partial(inputs.run, backend), inputs.inputs),
    }
    for part in ("forward", "backward", "all"):
        row[f"{part}, ms"] = timings.ms(name, part)
        row[f"{part}, speed-up"] = timings.speed_up(name, "grid_sample", part)
        if on_gpu:
            row[f"{part}, of the floor"] = inputs.floor()[part] * 1000 / timings.ms(name, part)
    if on_gpu:
        row["peak, MiB"] = inputs.peak(backend)
    return row


def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    backends = variants(options.device, options.program)
    dtypes = [torch.float32] if options.device == "cpu" else [torch.float32, torch.bfloat16]
    rows: dict[str, dict[str, float]] = {}
    for case in ("encoder", "decoder"):
        for dtype in dtypes:
            inputs = SamplingInputs(case, dtype, options)
            dtype_name = str(dtype).removeprefix("torch.")
            title = f"{case}, {inputs.num_queries} queries, {dtype_name}"
            for name, row in compare(inputs, backends).items():
                rows[f"{title}, {name}"] = row
            measure.write(options, rows, options.out)
    measure.show(options, rows, options.out)


if __name__ == "__main__":
    main(measure.parse(Options, QUICK))
