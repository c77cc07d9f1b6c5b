"""What is free, and what a computation needs, in bytes."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from groupdetr.engine import memory
from groupdetr.engine.memory import HostMeter, allowed, meter, ran_out, readable, usable
from groupdetr.errors import UsageError
from tests.runs import environment

MIB = 1 << 20
UNLIMITED = 1 << 40


def floats(mebibytes: int) -> torch.Tensor:
    return torch.zeros(mebibytes * MIB // 4)


# what is free


def group(folder: Path, most: str, used: int, files: int, names: tuple[str, str, str]) -> None:
    """A control group, as the kernel shows it."""
    folder.mkdir(parents=True)
    limit, usage, row = names
    (folder / limit).write_text(f"{most}\n")
    (folder / usage).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 7\n{row} {files}\n")


V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
V2 = ("memory.max", "memory.current", "inactive_file")


@pytest.mark.parametrize(
    ("line", "folder", "names"),
    [
        ("0::/user/job", "sys/fs/cgroup/user/job", V2),
        ("0::/", "sys/fs/cgroup", V2),
        ("4:cpu,memory:/docker/3", "sys/fs/cgroup/memory/docker/3", V1),
        (
            "4:memory:/docker/3",
            "sys/fs/cgroup/memory",
            V1,
        ),  # as seen from inside, where the path is another
        ("0::/user/job", "sys/fs/cgroup/user", V2),  # the limit of a parent
    ],
)
def test_a_containers_limit_counts_and_pages_of_files_do_not(
    tmp_path: Path, line: str, folder: str, names: tuple[str, str, str]
) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(f"9:pids:/elsewhere\n{line}\n")
    group(tmp_path / folder, "1000", 700, 200, names)
    assert [*allowed(tmp_path)] == [500]


def test_without_a_limit_and_without_control_groups_nothing_is_withheld(tmp_path: Path) -> None:
    assert not [*allowed(tmp_path)]
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    group(tmp_path / "sys/fs/cgroup", "max", 700, 200, V2)
    assert not [*allowed(tmp_path)]


def test_processes_share_what_the_container_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    free = 8 * 1024 * MIB
    monkeypatch.setattr(memory, "allowed", lambda _: iter([free]))
    monkeypatch.setattr(
        memory.psutil, "virtual_memory", lambda: type("", (), {"available": 2 * free})
    )
    alone = usable(torch.device("cpu"), apart=512 * MIB)
    assert alone == 0.75 * 7 * 1024 * MIB
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert usable(torch.device("cpu"), apart=512 * MIB) == 0.75 * 3 * 1024 * MIB
    assert usable(torch.device("cpu"), apart=free) == 0


def test_where_memory_cannot_be_measured_auto_is_refused() -> None:
    with pytest.raises(UsageError, match="mps"):
        usable(torch.device("mps"))


# what is needed


def test_the_peak_is_that_of_tensors_alive_together_and_views_are_not_counted_twice() -> None:
    def run() -> None:
        held = floats(8)
        held.view(2, -1)[1:].mul_(2)
        del held
        a, b = floats(3), floats(2)
        del a
        b.add(1)  # 2 and 2

    assert HostMeter(UNLIMITED)(run) == 8 * MIB


def test_what_one_run_leaves_counts_in_the_next() -> None:
    left: list[torch.Tensor] = []
    host = HostMeter(UNLIMITED)
    assert host(lambda: left.append(floats(4))) == 4 * MIB
    assert host(lambda: floats(3)) == 7 * MIB
    left.clear()
    gc.collect()
    assert host(lambda: floats(3)) == 3 * MIB


def test_backward_is_counted() -> None:
    """x, the square, the gradient of the square, which is expanded and holds a number, and that of x, twice in the
    making."""

    def run() -> None:
        x = floats(8).requires_grad_()
        (x * x).sum().backward()

    peak = HostMeter(UNLIMITED)(run)
    assert 3 * 8 * MIB <= peak <= 4 * 8 * MIB + 64


def test_it_stops_before_the_ceiling_is_passed_by_much_and_frees_what_it_took() -> None:
    made = []

    def run() -> None:
        kept = []
        for _ in range(1000):
            kept.append(floats(1))
            made.append(1)

    host = HostMeter(10 * MIB)
    with pytest.raises(torch.OutOfMemoryError) as stopped:
        host(run)
    assert ran_out(stopped.value)
    assert len(made) == 10
    del stopped
    gc.collect()
    assert host.held == 0


class FakeCuda:
    """The functions of torch.cuda that tell of memory, on a GPU of ``total`` bytes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, total: int) -> None:
        self.held, self.peak, self.total = 5 * MIB, 9 * MIB, total
        for name, answer in {
            "empty_cache": lambda: None,
            "mem_get_info": lambda _: (self.total - self.held, self.total),
            "memory_allocated": lambda _: self.held,
            "max_memory_allocated": lambda _: self.peak,
            "reset_peak_memory_stats": self.reset,
        }.items():
            monkeypatch.setattr(torch.cuda, name, answer)

    def reset(self, device: torch.device) -> None:
        del device
        self.peak = self.held

    def allocate(self, size: int) -> None:
        if self.held + size > self.total:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        self.peak = max(self.peak, self.held + size)


def test_on_a_gpu_the_allocator_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, device = FakeCuda(monkeypatch, total=105 * MIB), torch.device("cuda", 0)
    assert usable(device) == 90 * MIB
    measure = meter(device, usable(device))
    assert measure(lambda: gpu.allocate(80 * MIB)) == 80 * MIB
    assert measure(lambda: gpu.allocate(20 * MIB)) == 20 * MIB, "of this run, not of the one before"
    for much in (95 * MIB, 200 * MIB):  # beyond what may be used, and beyond what there is
        with pytest.raises(torch.OutOfMemoryError):
            measure(lambda much=much: gpu.allocate(much))


# what it looks like when there is none left


def too_much() -> None:
    torch.empty(1 << 50)


def wrong() -> None:
    torch.zeros(2) @ torch.zeros(3)


@pytest.mark.parametrize(("run", "expected"), [(too_much, True), (wrong, False)])
def test_an_allocator_that_gives_up_is_told_from_other_errors(
    run: Callable[[], None], expected: bool
) -> None:
    with pytest.raises(RuntimeError) as raised:
        run()
    assert ran_out(raised.value) is expected


def test_bytes_are_said_as_people_read_them() -> None:
    assert (readable(300 * MIB), readable(1536 * MIB)) == ("300 MiB", "1.5 GiB")


# against the process

PROGRAM = """
import sys
from pathlib import Path
import torch
import groupdetr
from groupdetr.engine.memory import HostMeter

def resident(name):
    return next(int(line.split()[1]) << 10 for line in Path("/proc/self/status").open() if line.startswith(name))

def step(batch):
    model = groupdetr.create_model("dab-deformable-detr-tiny", num_groups=6)
    pictures = groupdetr.Images(torch.zeros(batch, 3, 256, 256), torch.zeros(batch, 256, 256, dtype=torch.bool))
    targets = [groupdetr.Target(torch.zeros(5, dtype=torch.int64), torch.full((5, 4), 0.5)) for _ in range(batch)]
    sum(groupdetr.create_criterion(model)(model(pictures, targets), targets).values()).backward()

torch.set_num_threads(1)
step(1)
before = resident("VmRSS")
if sys.argv[1] == "metered":
    print(HostMeter(1 << 40)(lambda: step(16)))
else:
    step(16)
    print(resident("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux's /proc")
def test_the_peak_of_tensors_is_that_of_the_process_where_freed_memory_is_given_back() -> None:
    """To a twentieth. What an allocator keeps besides is what HEADROOM is for."""
    given_back = {
        **environment(),
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
    }
    counted, held = (
        int(
            subprocess.run(
                [sys.executable, "-c", PROGRAM, how],
                env=given_back,
                capture_output=True,
                check=True,
            ).stdout
        )
        for how in ("metered", "plain")
    )
    assert counted == pytest.approx(held, rel=0.05)


GROWING = """
import psutil, torch
from groupdetr.engine.memory import give_back
kept, resident = [], lambda: psutil.Process().memory_info().rss >> 20
first = torch.ones(8_000_000)
while not kept or kept[-1].data_ptr() < first.data_ptr():  # what imports left is full
    kept.append(torch.ones(300))
before = resident()
for size in range(60):
    large = []
    for _ in range(3):
        large.append(torch.ones(1_000_000 + 20_000 * size))
        kept.append(torch.ones(300))
    del large
    {}
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other allocators")
def test_freed_memory_is_given_back_between_results_that_are_kept() -> None:
    """Blocks of ever other sizes leave holes between small ones that stay: without it, a gigabyte of them.

    glibc is told to have one heap, and where large blocks begin, and holes that were there before are filled: else it
    depends on chance where blocks lie.
    """
    sizes = {"MALLOC_MMAP_THRESHOLD_": str(32 * MIB), "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
    surely = {**environment(), **sizes, "MALLOC_ARENA_MAX": "1"}
    programs = [[sys.executable, "-c", GROWING.format(call)] for call in ("give_back()", "pass")]
    found = [
        int(subprocess.run(p, env=surely, capture_output=True, check=True).stdout) for p in programs
    ]
    assert found[0] < 50
    assert found[1] > 200
