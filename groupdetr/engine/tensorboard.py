"""The log of a run for TensorBoard, if it is installed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from groupdetr.engine.callbacks import Callback, TrainerInterface
from groupdetr.engine.run_folder import is_evaluation
from groupdetr.structures.json_object import JsonObject


def tensorboard_callback(folder: Path, purge_step: int) -> Callback | None:
    """Return a callback that writes every record of the log as scalars.

    It is None if TensorBoard is not installed. Events after ``purge_step`` that an earlier part of
    the run wrote are hidden.
    """
    if find_spec("tensorboard") is None:
        return None
    return TensorBoardCallback(folder, purge_step)


class TensorBoardCallback(Callback):
    """Writes every record of the log as scalars, with the prefix ``train/`` or ``val/``."""

    def __init__(self, folder: Path, purge_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=purge_step)

    def on_record(self, trainer: TrainerInterface, record: JsonObject) -> None:
        prefix = "val" if is_evaluation(record) else "train"
        values = {**record, **record.get("losses", {})}
        for name, value in values.items():
            if isinstance(value, int | float) and name != "step":
                self.writer.add_scalar(f"{prefix}/{name}", value, record["step"])
        self.writer.flush()

    def on_train_end(self, trainer: TrainerInterface) -> None:
        self.writer.close()
