"""The folder of a run: where each thing lies, and how it is written so that a kill at any moment loses nothing."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import yaml

from groupdetr.errors import UsageError


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """``path`` holds either what it held or all that ``write`` writes, whenever the machine stops."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    with temporary.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=1, allow_nan=False, default=str) + "\n")


class RunFolder:
    """Paths of a run, and its logs. ``log.jsonl`` has a line for every logged step, ``results.csv`` for every
    evaluation."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config, self.environment, self.data = (
            path / "config.yaml",
            path / "env.json",
            path / "data.json",
        )
        self.log, self.results = path / "log.jsonl", path / "results.csv"
        self.best, self.last = path / "weights/best.safetensors", path / "weights/last.pt"
        self.val, self.report = path / "val", path / "report.html"
        self.mirror: Callable[[Mapping[str, Any]], None] | None = None  # is told every record, too

    @classmethod
    def existing(cls, path: Path) -> RunFolder:
        """The folder of a run that was started before."""
        run = cls(path)
        if not run.config.is_file():
            raise UsageError(
                "this is not a run", str(path), "pass a folder that `groupdetr train` wrote (--out)"
            )
        return run

    def read_config(self) -> dict[str, Any]:
        try:
            return dict(yaml.safe_load(self.config.read_text()))
        except (yaml.YAMLError, TypeError, ValueError) as error:
            raise UsageError(
                f"the configuration cannot be read: {error}", str(self.config)
            ) from error

    def clean(self) -> None:
        """Remove what writes that a kill cut short have left."""
        for unfinished in [*self.path.rglob(".*.part"), *self.path.rglob(".*.tmp")]:
            unfinished.unlink(missing_ok=True)

    def append(self, record: Mapping[str, Any]) -> None:
        with self.log.open("a") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")
        if self.mirror is not None:
            self.mirror(record)

    def records(self) -> list[dict[str, Any]]:
        """The log, without a last line that a kill cut short."""
        if not self.log.is_file():
            return []
        return [record for line in self.log.read_text().splitlines() if (record := _parsed(line))]

    def rewind(self, step: int) -> None:
        """Forget what was logged after ``step``: it is going to happen again."""
        kept = [record for record in self.records() if record["step"] <= step]
        write_text(self.log, "".join(json.dumps(record) + "\n" for record in kept))
        self.write_results(kept)

    def evaluations(self) -> list[dict[str, Any]]:
        return [record for record in self.records() if is_evaluation(record)]

    def write_results(self, records: Sequence[Mapping[str, Any]]) -> None:
        """results.csv anew, from the evaluations among ``records``."""
        rows = [record for record in records if is_evaluation(record)]
        text = io.StringIO()
        columns = list(dict.fromkeys(name for row in rows for name in row)) or ["step"]
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.results, text.getvalue())


def own_data(source: Path, remedy: str) -> tuple[Path, Path | None]:
    """The data that a run was trained on, and its folder of pictures if it was given one. A weights file knows of none:
    `UsageError` with the remedy."""
    if not source.is_dir():
        raise UsageError("no data set given", str(source), remedy)
    config = RunFolder.existing(source).read_config()
    images = config.get("images")
    return Path(config["data"]), Path(images) if images else None


def is_evaluation(record: Mapping[str, Any]) -> bool:
    """Of the log: is it one, and not a step?"""
    return "peak_memory_mb" in record


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        return dict(json.loads(line))
    except ValueError:
        return None
