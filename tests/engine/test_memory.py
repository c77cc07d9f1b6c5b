"""Free memory, and the peak of a computation, in bytes."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from groupdetr.engine import memory
from groupdetr.engine.memory import (
    CONTROL_GROUPS_V1,
    CONTROL_GROUPS_V2,
    ControlGroupFiles,
    HostMeter,
    control_group_bytes,
    create_meter,
    format_bytes,
    is_out_of_memory,
    usable_bytes,
)
from groupdetr.errors import UsageError
from tests.runs import environment, printed_number

MIB = 1 << 20
UNLIMITED = 1 << 40


def allocate(mebibytes: int) -> torch.Tensor:
    """Return a tensor of so many MiB."""
    return torch.zeros(mebibytes * MIB // 4)


# free memory


def write_control_group(
    folder: Path, files: ControlGroupFiles, limit: str, usage: int, reclaimable: int
) -> None:
    """Write the files by which the Linux kernel describes a control group."""
    folder.mkdir(parents=True)
    (folder / files.limit).write_text(f"{limit}\n")
    (folder / files.usage).write_text(f"{usage}\n")
    (folder / "memory.stat").write_text(f"anon 7\n{files.reclaimable} {reclaimable}\n")


def write_membership(root: Path, lines: str) -> None:
    """Write /proc/self/cgroup, which names the control groups of this process."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(lines)


@pytest.mark.parametrize(
    ("membership", "folder", "files"),
    [
        pytest.param("0::/user/job", "sys/fs/cgroup/user/job", CONTROL_GROUPS_V2, id="v2"),
        pytest.param("0::/", "sys/fs/cgroup", CONTROL_GROUPS_V2, id="v2, top"),
        pytest.param(
            "4:cpu,memory:/docker/3", "sys/fs/cgroup/memory/docker/3", CONTROL_GROUPS_V1, id="v1"
        ),
        pytest.param(
            "4:memory:/docker/3",
            "sys/fs/cgroup/memory",
            CONTROL_GROUPS_V1,
            id="v1, with the path outside of the container",
        ),
        pytest.param("0::/user/job", "sys/fs/cgroup/user", CONTROL_GROUPS_V2, id="v2, parent"),
    ],
)
def test_a_control_group_has_its_limit_minus_its_usage_without_file_pages(
    tmp_path: Path, membership: str, folder: str, files: ControlGroupFiles
) -> None:
    write_membership(tmp_path, f"9:pids:/elsewhere\n{membership}\n")
    write_control_group(tmp_path / folder, files, limit="1000", usage=700, reclaimable=200)
    assert list(control_group_bytes(tmp_path)) == [500]


def test_without_control_groups_there_is_no_limit(tmp_path: Path) -> None:
    assert not list(control_group_bytes(tmp_path))


def test_a_control_group_without_a_limit_is_skipped(tmp_path: Path) -> None:
    write_membership(tmp_path, "0::/\n")
    folder = tmp_path / "sys/fs/cgroup"
    write_control_group(folder, CONTROL_GROUPS_V2, limit="max", usage=700, reclaimable=200)
    assert not list(control_group_bytes(tmp_path))


def test_processes_share_the_free_memory_of_their_container(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A quarter, half a GiB and the reserved bytes are left alone."""
    free = 8 * 1024 * MIB
    cpu, reserved = torch.device("cpu"), 512 * MIB
    monkeypatch.setattr(memory, "control_group_bytes", lambda _: iter([free]))
    machine = SimpleNamespace(available=2 * free)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: machine)
    assert usable_bytes(cpu, reserved) == 0.75 * 7 * 1024 * MIB
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert usable_bytes(cpu, reserved) == 0.75 * 3 * 1024 * MIB
    assert usable_bytes(cpu, reserved=free) == 0


def test_auto_is_refused_on_a_device_whose_memory_cannot_be_measured() -> None:
    with pytest.raises(UsageError, match="mps"):
        usable_bytes(torch.device("mps"))


# the peak of a computation on the CPU


def test_the_peak_is_that_of_tensors_that_exist_at_the_same_time() -> None:
    """Views share their storage and are not counted again."""

    def run() -> None:
        large = allocate(8)
        large.view(2, -1)[1:].mul_(2)
        del large
        a, b = allocate(3), allocate(2)
        del a
        b.add(1)  # 2 MiB and another 2 MiB

    assert HostMeter(UNLIMITED)(run) == 8 * MIB


def test_tensors_that_remain_after_a_run_count_in_the_next_run() -> None:
    remaining: list[torch.Tensor] = []
    meter = HostMeter(UNLIMITED)
    assert meter(lambda: remaining.append(allocate(4))) == 4 * MIB
    assert meter(lambda: allocate(3)) == 7 * MIB
    remaining.clear()
    gc.collect()
    assert meter(lambda: allocate(3)) == 3 * MIB


def test_the_backward_pass_is_counted() -> None:
    """At the peak there are x, its square, and the gradient of x as two summands.

    The gradient of the square is one number that is expanded.
    """

    def run() -> None:
        x = allocate(8).requires_grad_()
        (x * x).sum().backward()

    peak = HostMeter(UNLIMITED)(run)
    assert 3 * 8 * MIB <= peak <= 4 * 8 * MIB + 64


def test_a_run_is_stopped_at_the_limit_and_its_tensors_are_freed() -> None:
    num_allocated = 0

    def run() -> None:
        nonlocal num_allocated
        tensors = []
        for _ in range(1000):
            tensors.append(allocate(1))
            num_allocated += 1

    meter = HostMeter(10 * MIB)
    with pytest.raises(torch.OutOfMemoryError) as raised:
        meter(run)
    assert is_out_of_memory(raised.value)
    assert num_allocated == 10
    # The traceback holds the tensors.
    del raised
    gc.collect()
    assert meter.counter.held == 0


# the peak of a computation on a GPU


class FakeCuda:
    """Replaces the functions of torch.cuda about memory by those of a GPU of ``total`` bytes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, total: int) -> None:
        self.held, self.peak, self.total = 5 * MIB, 9 * MIB, total
        functions = {
            "empty_cache": lambda: None,
            "mem_get_info": lambda _: (self.total - self.held, self.total),
            "memory_allocated": lambda _: self.held,
            "max_memory_allocated": lambda _: self.peak,
            "reset_peak_memory_stats": self.reset_peak,
        }
        for name, function in functions.items():
            monkeypatch.setattr(torch.cuda, name, function)

    def reset_peak(self, device: torch.device) -> None:
        self.peak = self.held

    def allocate_and_free(self, size: int) -> None:
        if self.held + size > self.total:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        self.peak = max(self.peak, self.held + size)


def test_on_a_gpu_the_peak_is_that_of_cudas_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, device = FakeCuda(monkeypatch, total=105 * MIB), torch.device("cuda", 0)
    assert usable_bytes(device) == 90 * MIB
    meter = create_meter(device, usable_bytes(device))
    assert meter(lambda: gpu.allocate_and_free(80 * MIB)) == 80 * MIB
    assert meter(lambda: gpu.allocate_and_free(20 * MIB)) == 20 * MIB, "not that of the run before"
    # More than may be used, and more than the GPU has.
    for size in (95 * MIB, 200 * MIB):
        with pytest.raises(torch.OutOfMemoryError):
            meter(partial(gpu.allocate_and_free, size))


# how PyTorch reports that memory ran out


def allocate_too_much() -> None:
    torch.empty(1 << 50)


def multiply_wrong_shapes() -> None:
    torch.zeros(2) @ torch.zeros(3)


@pytest.mark.parametrize(
    ("run", "expected"), [(allocate_too_much, True), (multiply_wrong_shapes, False)]
)
def test_only_errors_of_an_allocator_mean_that_memory_ran_out(
    run: Callable[[], None], expected: bool
) -> None:
    with pytest.raises(RuntimeError) as raised:
        run()
    assert is_out_of_memory(raised.value) is expected


def test_bytes_are_formatted_as_mib_or_gib() -> None:
    assert format_bytes(300 * MIB) == "300 MiB"
    assert format_bytes(1536 * MIB) == "1.5 GiB"


# comparison with the memory of the process

PEAK_PROGRAM = """
import sys
from pathlib import Path
import torch
import groupdetr
from groupdetr.engine.memory import HostMeter

def status_bytes(name):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) << 10

def step(batch):
    model = groupdetr.create_model("dab-deformable-detr-tiny", num_groups=6)
    padding = torch.zeros(batch, 256, 256, dtype=torch.bool)
    images = groupdetr.Images(torch.zeros(batch, 3, 256, 256), padding)
    target = groupdetr.Target(torch.zeros(5, dtype=torch.int64), torch.full((5, 4), 0.5))
    targets = [target] * batch
    losses = groupdetr.create_criterion(model)(model(images, targets), targets)
    sum(losses.values()).backward()

torch.set_num_threads(1)
step(1)
before = status_bytes("VmRSS")
if sys.argv[1] == "meter":
    print(HostMeter(1 << 40)(lambda: step(16)))
else:
    step(16)
    print(status_bytes("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux's /proc")
def test_the_peak_of_tensors_is_the_peak_of_a_process_that_returns_freed_memory() -> None:
    """It is equal to a twentieth. HEADROOM is for what an allocator holds in addition."""
    returns_freed_memory = {
        **environment(),
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
    }
    of_tensors = printed_number(PEAK_PROGRAM, "meter", env=returns_freed_memory)
    of_process = printed_number(PEAK_PROGRAM, "process", env=returns_freed_memory)
    assert of_tensors == pytest.approx(of_process, rel=0.05)
