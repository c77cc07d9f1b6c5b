"""Numbers that the processes of a training exchange from host to host.

NCCL exchanges what is on GPUs, after all the work that is queued there, and reading the result
waits for that. Numbers that the hosts know already, such as counts of objects, take gloo instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import distributed


class HostCommunication:
    """Exchanges numbers between the hosts of ``num_processes`` processes.

    All processes create it, and call its methods, in the same order. With one process, it returns
    the numbers that it is given. ``device`` is that of the training.
    """

    def __init__(self, num_processes: int, device: torch.device) -> None:
        self.num_processes = num_processes
        self.device = torch.device("cpu")
        self.group: Any = None  # None: the group of all processes
        if num_processes > 1 and device.type != "cpu":
            if distributed.is_gloo_available():
                self.group = distributed.new_group(backend="gloo")
            else:
                self.device = device

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """Return the sums of numbers over all processes."""
        if self.num_processes == 1:
            return list(numbers)
        sums = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        distributed.all_reduce(sums, group=self.group)
        result: list[float] = sums.tolist()
        return result

    def gather(self, numbers: Sequence[int]) -> list[int]:
        """Return the numbers of all processes, of each as many, in the order of the processes."""
        if self.num_processes == 1:
            return list(numbers)
        own = torch.tensor(numbers, dtype=torch.int64, device=self.device)
        gathered = [torch.empty_like(own) for _ in range(self.num_processes)]
        distributed.all_gather(gathered, own, group=self.group)
        result: list[int] = torch.cat(gathered).tolist()
        return result
