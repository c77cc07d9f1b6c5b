"""How a training step grows with the number of processes: the same batch in each, as on GPUs.

    python benchmarks/ranks.py [--ranks 1 2 4] [--device cuda]

Every process takes steps of the network that a training wraps for several processes: forward,
matching, losses, backward with the gradients of all processes averaged. It has no data loader and
no optimizer. "Wall" is the time of a step by the clock, and "CPU" the process time of the slowest
process. "Scaling" is the number of images a second, divided by that of the first number of
processes. It needs as many free cores as there are processes, or a GPU for each of them.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import measure
import step
import torch
from torch import distributed, multiprocessing

import groupdetr
from groupdetr.engine.accelerator import create_accelerator
from groupdetr.engine.distributed import wrap_for_processes
from groupdetr.engine.precision import tf32_of
from groupdetr.modeling.group_chunks import ModelWithLoss


@dataclass
class Options:
    model: str = "conditional-detr-tiny"
    ranks: tuple[int, ...] = (1, 2)
    groups: int = 6
    side: int = 128
    batch: int = 4  # images of each process
    steps: int = 20
    warm_up: int = 5  # steps before those that are measured
    device: str = "cpu"
    threads: int = 1  # of each process
    quick: bool = False  # fewer steps
    out: Path | None = None  # JSON


QUICK = {"side": 64, "steps": 6, "warm_up": 2}


def run_rank(rank: int, ranks: int, port: int, options: Options, folder: Path) -> None:
    """Take the steps of one process, and write their times to a file."""
    # What torchrun sets
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    settings = groupdetr.Settings(device=options.device, threads=options.threads)
    accelerator = create_accelerator(settings)
    step_options = step.Options(
        options.model, side=options.side, batch=options.batch, device=str(accelerator.device)
    )
    training_step = step.Step(step_options, options.groups)
    network: Any = ModelWithLoss(training_step.model, training_step.criterion)
    if ranks > 1:
        network = wrap_for_processes(network, accelerator, settings)
    wall, process = [], []
    for number in range(options.warm_up + options.steps):
        accelerator.wait_for_everyone()
        start, cpu_start = time.perf_counter(), time.process_time()
        training_step.model.zero_grad(set_to_none=True)
        with tf32_of(accelerator):
            loss, _ = network(training_step.images, training_step.targets)
            loss.backward()
        if options.device != "cpu":
            torch.cuda.synchronize()
        if number >= options.warm_up:
            wall.append(time.perf_counter() - start)
            process.append(time.process_time() - cpu_start)
    times = {"wall": statistics.median(wall), "CPU": statistics.median(process)}
    (folder / f"{rank}.json").write_text(json.dumps(times), encoding="utf-8")
    if ranks > 1:
        distributed.destroy_process_group()


def measure_ranks(ranks: int, options: Options) -> dict[str, float]:
    """Return the times in seconds of a step with so many processes, of the slowest one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with TemporaryDirectory() as folder:
        arguments = (ranks, port, options, Path(folder))
        multiprocessing.spawn(run_rank, arguments, nprocs=ranks)
        all_times = [json.loads(file.read_text()) for file in Path(folder).glob("*.json")]
    return {name: max(times[name] for times in all_times) for name in ("wall", "CPU")}


def main(options: Options) -> None:
    rows: dict[str, dict[str, float]] = {}
    first = 0.0
    for ranks in options.ranks:
        times = measure_ranks(ranks, options)
        images_a_second = ranks * options.batch / times["wall"]
        first = first or images_a_second
        rows[f"{ranks} processes" if ranks > 1 else "1 process"] = {
            "wall, ms": 1000 * times["wall"],
            "CPU, ms": 1000 * times["CPU"],
            "images a second": images_a_second,
            "scaling": images_a_second / first,
        }
    measure.show(options, rows, options.out)


if __name__ == "__main__":
    main(measure.parse(Options, QUICK))
