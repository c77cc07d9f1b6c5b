"""What FSDP saves and what it costs, beside DistributedDataParallel (DDP): memory and time.

    python benchmarks/sharding.py [--ranks 2] [--device cuda]

Every process trains DINO with a plain Vision Transformer of a given size, by default that of
ViT-Base. "State" is what a process holds between two steps: parameters, gradients and the moments
of the optimizer. "Peak" is what the tensors of a process take at most in a step: state, gathered
parameters, activations and buffers. It is that of PyTorch's allocator. "CPU" is the process time of
a step on a CPU; on a GPU it is wall time. Both ways take turns in the same processes. Without a
GPU, the processes exchange everything through the memory of the machine.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import measure
import torch
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

import groupdetr
from groupdetr.engine.accelerator import create_accelerator
from groupdetr.engine.distributed import distributed_options, without_warning_of_old_name
from groupdetr.engine.optimizer import create_optimizer
from groupdetr.engine.sharded_tensors import local_part
from groupdetr.engine.sharding import create_mesh, shard
from groupdetr.modeling.backbones.vit import ViTSizes, vit_huge
from groupdetr.modeling.group_chunks import with_loss

WAYS = ("DDP", "FSDP")


@dataclass
class Options:
    ranks: int = 2
    width: int = 768  # of the Vision Transformer
    depth: int = 12
    heads: int = 12
    groups: int = 3
    group_chunk: int | None = None
    recompute: bool = False
    side: int = 256
    batch: int = 1  # images of each process
    rounds: int = 5
    device: str = "cpu"
    threads: int = 1  # of each process
    quick: bool = False  # a small model
    out: Path | None = None  # JSON


QUICK = {"width": 96, "depth": 4, "heads": 3, "side": 128, "rounds": 2}


class Training:
    """A detector, its network for several processes, and its optimizer."""

    def __init__(self, way: str, options: Options, device: torch.device) -> None:
        torch.manual_seed(0)
        self.model = groupdetr.create_model(
            "dino-vit-tiny", num_groups=options.groups, recompute=options.recompute, dropout=0.0
        )
        sizes = ViTSizes(
            width=options.width,
            depth=options.depth,
            num_heads=options.heads,
            window=7,
            global_blocks=tuple(range(2, options.depth, 3)),
            image=options.side,
            channels=self.model.recipe.channels,
        )
        self.model.backbone = vit_huge(False, options.recompute, sizes)
        self.model.train()
        settings = groupdetr.Settings(device=options.device, group_chunk=options.group_chunk)
        criterion = groupdetr.create_criterion(self.model)
        self.network: Callable[..., Any]
        if way == "FSDP":
            self.network = with_loss(self.model, criterion, options.group_chunk)
            shard(self.network, create_mesh(device, options.ranks))
        else:
            network = with_loss(self.model.to(device), criterion, options.group_chunk)
            with without_warning_of_old_name():
                self.network = DistributedDataParallel(
                    network, **distributed_options(settings).to_kwargs()
                )
        self.optimizer = create_optimizer(self.model, settings)
        generator = torch.Generator().manual_seed(0)
        pixels = torch.rand(3, options.side, options.side, generator=generator)
        self.images = groupdetr.Images.from_list([pixels.to(device)] * options.batch)
        boxes = torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.6, 0.5, 0.4, 0.3]], device=device)
        target = groupdetr.Target(torch.tensor([0, 1], device=device), boxes)
        self.targets = [target] * options.batch

    def step(self) -> None:
        """Take an optimizer step. The gradients are kept until the next one."""
        self.optimizer.zero_grad(set_to_none=True)
        loss, _ = self.network(self.images, self.targets)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 0.1)
        self.optimizer.step()

    def state_bytes(self) -> int:
        """Return the bytes of parameters, gradients and moments that this process holds."""
        tensors: list[Tensor] = []
        for parameter in self.model.parameters():
            tensors.append(parameter)
            if parameter.grad is not None:
                tensors.append(parameter.grad)
            tensors += self.optimizer.state[parameter].values()
        return sum(local_part(x).numel() * x.element_size() for x in tensors)

    def peak_bytes(self, device: str) -> float:
        """Return the bytes that the tensors of a step take at most in this process.

        Between steps there is nothing but the state. Two steps are taken before, in which the
        optimizer allocates the moments and DistributedDataParallel its buckets.
        """
        self.step()
        self.step()
        return self.state_bytes() + measure.peak_of_tensors(self.step, device)


def run_rank(rank: int, port: int, ways: tuple[str, ...], options: Options, folder: Path) -> None:
    """Train in one process in all ``ways`` in turn, and write what was measured to a file."""
    # What torchrun sets
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(options.ranks),
        "LOCAL_WORLD_SIZE": str(options.ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    settings = groupdetr.Settings(device=options.device, threads=options.threads)
    device = create_accelerator(settings).device
    trainings = {way: Training(way, options, device) for way in ways}
    times: dict[str, list[float]] = {way: [] for way in ways}
    peaks = {way: training.peak_bytes(options.device) for way, training in trainings.items()}
    for _ in range(options.rounds):
        for way, training in trainings.items():
            distributed.barrier()
            start = measure.clock(options.device)
            training.step()
            times[way].append(measure.clock(options.device) - start)
    results = {
        way: {
            "parameters": sum(x.numel() for x in training.model.parameters()),
            "state": training.state_bytes() / 2**20,
            "peak": peaks[way] / 2**20,
            "time": statistics.median(times[way]),
        }
        for way, training in trainings.items()
    }
    (folder / f"{rank}.json").write_text(json.dumps(results), encoding="utf-8")
    distributed.destroy_process_group()


def measure_ways(ways: tuple[str, ...], options: Options) -> dict[str, dict[str, float]]:
    """Return what was measured of every way, the largest value of all processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with TemporaryDirectory() as folder:
        arguments = (port, ways, options, Path(folder))
        multiprocessing.spawn(run_rank, arguments, nprocs=options.ranks)
        ranks = [json.loads(file.read_text()) for file in Path(folder).glob("*.json")]
    return {
        way: {name: max(rank[way][name] for rank in ranks) for name in ranks[0][way]}
        for way in ways
    }


def main(options: Options) -> None:
    measured = measure_ways(WAYS, options)
    rows: dict[str, dict[str, float]] = {}
    for way in WAYS:
        results = measured[way]
        rows[way] = {
            "M parameters": results["parameters"] / 1e6,
            "state, MiB": results["state"],
            "peak, MiB": results["peak"],
            "CPU, ms" if options.device == "cpu" else "ms": 1000 * results["time"],
            "time ratio": results["time"] / measured["DDP"]["time"],
        }
    measure.show(options, rows, options.out)


if __name__ == "__main__":
    main(measure.parse(Options, QUICK))
