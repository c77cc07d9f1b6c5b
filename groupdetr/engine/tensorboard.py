"""The log of a run for TensorBoard, where it is installed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from groupdetr.engine.run_folder import is_evaluation


def mirror(folder: Path, purge_step: int) -> Callable[[Mapping[str, Any]], None] | None:
    """What writes every record of the log as scalars too, or None without TensorBoard.

    ``purge_step``: what a resumed run had written from this step on is hidden.
    """
    if find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder), purge_step=purge_step)

    def write(record: Mapping[str, Any]) -> None:
        group = "val" if is_evaluation(record) else "train"
        values = {**record, **record.get("losses", {})}
        for name, value in values.items():
            if isinstance(value, int | float) and name != "step":
                writer.add_scalar(f"{group}/{name}", value, record["step"])
        writer.flush()

    return write
