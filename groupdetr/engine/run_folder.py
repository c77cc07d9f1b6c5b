"""The folder of a run: its files, written so that an interrupted process loses nothing."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import yaml

from groupdetr.errors import UsageError
from groupdetr.structures.json_object import JsonObject


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file so that it always holds its former or its new content in full.

    That is true even if the machine stops at any time. ``write`` is called with an open file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    with temporary.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, atomically."""
    write_atomically(path, lambda file: file.write(text.encode()))


def write_json(path: Path, content: object) -> None:
    """Write a JSON file, atomically."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False, default=str) + "\n")


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
        self.last = path / "weights/last.pt"
        self.val = path / "val"
        self.report = path / "report.html"
        self.tensorboard = path / "tensorboard"

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
            return dict(yaml.safe_load(self.config.read_text()))
        except (yaml.YAMLError, TypeError, ValueError) as error:
            raise UsageError(
                f"the configuration cannot be read: {error}", str(self.config)
            ) from error

    def clean(self) -> None:
        """Remove unfinished files, which an interrupted process has left."""
        for unfinished in [*self.path.rglob(".*.part"), *self.path.rglob(".*.tmp")]:
            unfinished.unlink(missing_ok=True)

    def append(self, record: JsonObject) -> None:
        """Append a record to the log."""
        with self.log.open("a") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")

    def records(self) -> list[JsonObject]:
        """Return the records of the log. An incomplete last line is left out."""
        if not self.log.is_file():
            return []
        parsed = [_parse(line) for line in self.log.read_text().splitlines()]
        return [record for record in parsed if record]

    def rewind(self, step: int) -> None:
        """Remove what was logged after ``step``, because those steps are run again."""
        remaining = [record for record in self.records() if record["step"] <= step]
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
    config = RunFolder.existing(source).read_config()
    images = config.get("images")
    return Path(config["data"]), Path(images) if images else None


def is_evaluation(record: JsonObject) -> bool:
    """True if a record of the log is an evaluation, and not a step."""
    return "peak_memory_mb" in record


def _parse(line: str) -> JsonObject | None:
    try:
        return dict(json.loads(line))
    except ValueError:
        return None
