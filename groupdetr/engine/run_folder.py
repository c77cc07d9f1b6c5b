"""The folder of a run: its files, written so that an interrupted process loses nothing."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import yaml

from groupdetr.data.fingerprint import is_fingerprint
from groupdetr.errors import UsageError
from groupdetr.files.writing import explained, remove_drafts, write_atomically
from groupdetr.structures.json_object import JsonObject

MAX_NUMBER = 1e300  # of a record in the log


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, atomically."""
    # A name may have halves of surrogate pairs, which UTF-8 does not have.
    write_atomically(path, lambda file: file.write(text.encode("utf-8", "backslashreplace")))


def write_json(path: Path, content: object) -> None:
    """Write a JSON file, atomically."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False, default=str) + "\n")


def timestamp() -> str:
    """Return the local time with its offset, such as 2026-01-31T12:00:00+01:00."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


class RunFolder:
    """The files of a run.

    ``log.jsonl`` has a line for every logged step and evaluation, ``results.csv`` a row for every
    evaluation.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.environment = path / "env.json"
        self.data = path / "data.json"
        self.log = path / "log.jsonl"
        self.results = path / "results.csv"
        self.best = path / "weights/best.safetensors"
        self.best_metrics = path / "weights/best.json"  # of the evaluation of these weights
        self.best_errors = path / "weights/errors.json"  # what they miss and make up
        self.last = path / "weights/last.pt"
        self.previous = path / "weights/previous.pt"  # the checkpoint before last.pt
        self.lock = path / ".lock"  # of the training that works in this folder
        self.val = path / "val"
        self.report = path / "report.html"
        self.tensorboard = path / "tensorboard"
        self.trackers = path / "trackers.json"  # what --log-with continues when a run is resumed

    @classmethod
    def existing(cls, path: Path) -> RunFolder:
        """Return the folder of a run that was started before. `UsageError` if it is not one."""
        run = cls(path)
        if not run.config.is_file():
            raise UsageError(
                "this is not the folder of a run",
                str(path),
                "pass a folder that `groupdetr train` wrote (its --out)",
            )
        return run

    def read_config(self) -> JsonObject:
        """Return the content of config.yaml."""
        try:
            return dict(yaml.safe_load(self.config.read_text(encoding="utf-8")))
        except (yaml.YAMLError, OSError, RecursionError, TypeError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UsageError(
                f"the configuration of this run cannot be read: {reason}",
                str(self.config),
                "restore the file; its weights can be used without it",
            ) from error

    def commands(self) -> list[JsonObject]:
        """Return the commands that have started and resumed the run, each with time and step.

        They are in env.json. The list is empty if that cannot be read.
        """
        try:
            content = json.loads(self.environment.read_text(encoding="utf-8"))
            return [dict(command) for command in content["commands"]]
        except (OSError, ValueError, LookupError, RecursionError, TypeError):
            return []

    def data_fingerprint(self) -> JsonObject | None:
        """Return what identifies the content of the data of the run.

        None if it is not recorded, or if what is recorded is not a fingerprint.
        """
        try:
            recorded = json.loads(self.data.read_text(encoding="utf-8"))["fingerprint"]
        except (OSError, ValueError, LookupError, RecursionError, TypeError):
            return None
        return dict(recorded) if is_fingerprint(recorded) else None

    def clean(self) -> None:
        """Remove unfinished files of a training, which a process has left that was killed.

        All other files are left alone, whatever their names are.
        """
        written = [self.config, self.environment, self.data, self.log, self.results, self.report]
        written += [self.best, self.best_metrics, self.best_errors, self.last, self.previous]
        written += [self.trackers]
        remove_drafts([*written, self.val / "metrics.json"])

    def append(self, record: JsonObject) -> None:
        """Append a record to the log."""
        with explained(self.log), self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")

    def records(self) -> list[JsonObject]:
        """Return the records of the log. An incomplete last line is left out."""
        if not self.log.is_file():
            return []
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        parsed = [_parse(line) for line in lines]
        return [record for record in parsed if record]

    def rewind(self, step: int, evaluation_due: bool = False) -> None:
        """Remove what was logged after ``step``, because those steps are run again.

        With ``evaluation_due``, the evaluation of this step is done again, too.
        """
        remaining = [record for record in self.records() if record["step"] <= step]
        if evaluation_due:
            remaining = [r for r in remaining if r["step"] < step or not is_evaluation(r)]
        write_text(self.log, "".join(json.dumps(record) + "\n" for record in remaining))
        self.write_results(remaining)

    def evaluations(self) -> list[JsonObject]:
        """Return the records of the evaluations."""
        return [record for record in self.records() if is_evaluation(record)]

    def write_results(self, records: Sequence[JsonObject]) -> None:
        """Write results.csv from the evaluations among ``records``."""
        rows = [record for record in records if is_evaluation(record)]
        # A dict keeps the order in which the columns first appear.
        names: dict[str, None] = {}
        for row in rows:
            names.update(dict.fromkeys(row))
        columns = list(names) or ["step"]
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.results, text.getvalue())


def training_data(source: Path, remedy: str) -> tuple[Path, Path | None]:
    """Return the dataset that a run was trained on, and its image folder if one was given.

    A weights file does not record its data: then it is a `UsageError` with ``remedy``.
    """
    if not source.is_dir():
        raise UsageError("no dataset was given", str(source), remedy)
    run = RunFolder.existing(source)
    config = run.read_config()
    data, images = config.get("data"), config.get("images")
    if not isinstance(data, str) or not isinstance(images, str | None):
        what = "the configuration of this run does not say which dataset it was trained on"
        raise UsageError(what, str(run.config), remedy)
    return Path(data), Path(images) if images else None


def is_evaluation(record: JsonObject) -> bool:
    """True if a record of the log is an evaluation, and not a step."""
    return "peak_memory_mb" in record


def _parse(line: str) -> JsonObject | None:
    """Return a record of the log, None if the line is not one."""
    try:
        record = json.loads(line)
    except (RecursionError, ValueError):
        return None
    return record if _is_record(record) else None


def _is_record(record: object) -> bool:
    """True if a value is a record of the log: of a step or of an evaluation."""
    if not isinstance(record, dict) or type(record.get("step")) is not int:
        return False
    values = {name: value for name, value in record.items() if name != "losses"}
    if any(value is not None and not _is_finite(value) for value in values.values()):
        return False
    if not isinstance(record.get("losses", {}), dict):
        return False
    required = ("epoch", "seconds", "peak_memory_mb") if is_evaluation(record) else ("loss",)
    return all(values.get(name) is not None for name in required)


def _is_finite(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) <= MAX_NUMBER
