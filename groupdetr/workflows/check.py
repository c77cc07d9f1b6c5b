"""`groupdetr check`: everything in a dataset that would break or mislead training."""

from __future__ import annotations

import json as json_format
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from groupdetr.data.check import CheckReport
from groupdetr.data.check import check as check_coco
from groupdetr.data.nuscenes.version import check_version, is_version
from groupdetr.engine.run_folder import write_json
from groupdetr.errors import DataError


@dataclass(frozen=True)
class CheckResult:
    """The result of `check`: the report and the exit code."""

    report: CheckReport

    @property
    def exit_code(self) -> int:
        """0, or that of a data error if training must not start."""
        return DataError.exit_code if self.report.verdict == "refuse" else 0


def check(
    *,
    data: Path,
    images: Path | None,
    queries: int | None,
    decode: bool,
    masks: bool,
    workers: int | None,
    json: bool,
    out: Path | None,
) -> CheckResult:
    """Check a dataset and print the report. The arguments are the options of `groupdetr check`."""
    if is_version(data):
        report: CheckReport = check_version(data, decode)
    else:
        report = check_coco(data, images, queries, decode, workers, masks)
    if out is not None:
        write_json(out / "check.json", report.to_json())
    if json:
        print(json_format.dumps(report.to_json(), indent=1, allow_nan=False))
    else:
        Console(highlight=False, soft_wrap=True).print(report.render(), markup=False)
    return CheckResult(report)
