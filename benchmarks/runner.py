"""Runs the parts of `python -m benchmarks all`, each in a process of its own."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import measure
import overview
import parts
from parts import NotRunError, Part

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent


@dataclass
class Options:
    """Run all benchmarks, and write one page and one JSON file."""

    out: Path = Path("runs/benchmarks")  # folder
    quick: bool = False  # smaller, with fewer rounds
    device: str = "cpu"
    only: tuple[str, ...] = ()  # names of benchmarks; all by default
    official: Path | None = None  # a checkout of the authors' branch GroupDETR
    lwdetr: Path | None = None  # a checkout of LW-DETR
    rfdetr: Path | None = None  # a folder of packages with rfdetr; by default the installed one
    ultralytics: Path | None = None  # a folder of packages with ultralytics
    data: Path | None = None  # a dataset of JPEGs
    limit: float = 3600.0  # seconds after which a part is stopped

    @property
    def paths(self) -> dict[str, Path | None]:
        """The paths of what the parts compare with or measure on."""
        return {name: getattr(self, name) for name in parts.REMEDIES}


def run_all(options: Options) -> dict[str, Any]:
    """Run the parts one after the other, and return what the JSON file has."""
    chosen = [parts.part_of(name) for name in options.only] or list(parts.PARTS)
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "benchmarks.json"
    results: dict[str, Any] = {}
    if options.only and file.exists():
        results = json.loads(file.read_text(encoding="utf-8"))["parts"]
    for part in chosen:
        print(f"{part.name}: {part.title}", flush=True)
        results[part.name] = result = run_part(part, options)
        print("\n".join(outcome_lines(result)) + "\n", flush=True)
        in_order = {p.name: results[p.name] for p in parts.PARTS if p.name in results}
        content = {"parts": in_order}
        file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        page = overview.render(content)
        (options.out / "benchmarks.html").write_text(page, encoding="utf-8")
    print(f"{options.out / 'benchmarks.html'}\n{file}")
    return content


def run_part(part: Part, options: Options) -> dict[str, Any]:
    """Run a part in a process of its own, and return its table, or the reason why there is none."""
    device = options.device if part.on_device else "cpu"
    result: dict[str, Any] = {"title": part.title, "quick": options.quick, "device": device}
    started = time.monotonic()
    try:
        arguments = part.command(options.paths, options.quick, options.device)
        result["command"] = public_command(part, arguments, options)
        result |= run_script(part.script, arguments, options.limit)
    except NotRunError as error:
        result["reason"] = str(error)
    result["seconds"] = round(time.monotonic() - started)
    return result


def run_script(script: str, arguments: list[str], limit: float) -> dict[str, Any]:
    """Return the machine and the rows that a script has measured.

    `NotRunError`, with the last lines of what the script printed, if it fails.
    """
    with TemporaryDirectory() as folder:
        out = Path(folder, "result.json")
        command = [sys.executable, str(FOLDER / script), *arguments, "--out", str(out)]
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path.rstrip(os.pathsep)}
        try:
            run = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=limit
            )
        except subprocess.TimeoutExpired:
            raise NotRunError(f"was stopped after {limit:g} seconds") from None
        if run.returncode != 0:
            raise NotRunError(reason_of(run.stderr or run.stdout, run.returncode))
        content = json.loads(out.read_text(encoding="utf-8"))
    return {"environment": content["environment"], "results": content["results"]}


def reason_of(output: str, status: int) -> str:
    """Return why a script failed: its message, or the last line of a traceback."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    if not lines:
        return f"ended with status {status}"
    return (
        lines[-1] if any(line.startswith("Traceback") for line in lines) else "; ".join(lines[-3:])
    )


def public_command(part: Part, arguments: list[str], options: Options) -> str:
    """Return the command of a part as another machine would run it, without paths of this one."""
    names = {str(path): name.upper() for name, path in options.paths.items() if path is not None}
    return shlex.join(
        ["python", f"benchmarks/{part.script}", *(names.get(a, a) for a in arguments)]
    )


def outcome_lines(result: dict[str, Any]) -> list[str]:
    """Return the table of a part in Markdown, or the reason why there is none."""
    if "reason" in result:
        return [f"not run: {result['reason']}"]
    return measure.markdown(result["results"])
