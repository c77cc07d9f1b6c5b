"""`python -m benchmarks all`: the list of parts, and that each may fail alone."""

from __future__ import annotations

import dataclasses
import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.conftest import BENCHMARKS

# A benchmark that writes what `measure.show` does
SCRIPT = """
import json, sys
from pathlib import Path

environment = {
    "date": "2026-11-29", "processor": "a processor", "python": "3", "gpus": [],
    "packages": {"torch": "2.14.1", "lapx": None},
}
rows = {
    "usual": {"ms": 1234.5},
    "ours <b>": {"ms": 0.125, "speed-up": 2.0, "arguments": sys.argv[1:-2]},
}
content = {"environment": environment, "results": rows}
Path(sys.argv[-1]).write_text(json.dumps(content))
"""


@pytest.fixture(autouse=True)
def _benchmarks_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])


@pytest.fixture
def parts() -> Any:
    return import_module("parts")


def scripts() -> list[Path]:
    """Return the files of benchmarks that are programs, and not modules of others."""
    files = []
    for file in sorted(BENCHMARKS.glob("[!_]*.py")):
        if "__main__" in file.read_text(encoding="utf-8"):
            files.append(file)
    return files


def test_every_benchmark_is_a_part_of_all_or_has_a_reason_why_not(parts: Any) -> None:
    names = {part.script for part in parts.PARTS} | set(parts.OTHERS)
    assert names == {file.name for file in scripts()}


def test_every_benchmark_is_in_the_readme() -> None:
    readme = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    for file in scripts():
        assert f"| `{file.name}` |" in readme, file.name


def test_every_part_has_the_options_that_all_passes(parts: Any) -> None:
    for part in parts.PARTS:
        module = import_module(Path(part.script).stem)
        options = module.Compare if part.name == "loading" else module.Options
        fields = {field.name for field in dataclasses.fields(options)}
        assert {"quick", "out"} <= fields, part.name
        assert not part.on_device or "device" in fields, part.name
        assert set(getattr(module, "QUICK", {})) <= fields, part.name


def test_rows_without_common_columns_are_separate_tables() -> None:
    measure = import_module("measure")
    rows = {
        "step": {"ms": 12.0, "kept": 3},
        "matcher": {"ms": 0.5},
        "dataset": {"seconds": 1234},
    }
    assert measure.markdown(rows) == [
        "| | ms | kept |",
        "|---|---|---|",
        "| step | 12 | 3 |",
        "| matcher | 0.5 |  |",
        "",
        "| | seconds |",
        "|---|---|",
        "| dataset | 1,234 |",
    ]


@pytest.mark.parametrize(
    ("typed", "rounds", "side"),
    [([], 5, 320), (["--quick"], 1, 192), (["--quick", "--side", "64"], 1, 64)],
)
def test_typed_options_have_precedence_over_quick(
    typed: list[str], rounds: int, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure, step = import_module("measure"), import_module("step")
    monkeypatch.setattr(sys, "argv", ["step.py", *typed])
    options = measure.parse(step.Options, step.QUICK)
    assert (options.rounds, options.side) == (rounds, side)


def test_quick_leaves_required_arguments_required(monkeypatch: pytest.MonkeyPatch) -> None:
    measure, official = import_module("measure"), import_module("official")
    monkeypatch.setattr(sys, "argv", ["official.py", "--quick", "folder"])
    assert measure.parse(official.Options, official.QUICK).checkout == Path("folder")
    monkeypatch.setattr(sys, "argv", ["official.py", "--quick"])
    with pytest.raises(SystemExit):
        measure.parse(official.Options, official.QUICK)


def test_a_part_that_fails_is_named_with_its_reason_and_the_others_run(
    parts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = {
        "sound": SCRIPT,
        "broken": "raise ValueError('a cause')",
        "message": "import sys; sys.exit('the package x is missing\\npip install x')",
    }
    all_parts = []
    for name, text in texts.items():
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
        script = str(tmp_path / f"{name}.py")
        peer = {"lwdetr": "--lwdetr"} if name == "sound" else {}
        all_parts.append(parts.Part(name, f"Title of {name}", script, takes=peer))
    all_parts.insert(0, parts.Part("peerless", "Title", "none.py", needs={"official": ""}))
    monkeypatch.setattr(parts, "PARTS", tuple(all_parts))

    runner = import_module("runner")
    checkout, out = tmp_path / "secret-folder", tmp_path / "out"
    runner.run_all(runner.Options(out=out, quick=True, lwdetr=checkout))

    text = (out / "benchmarks.json").read_text(encoding="utf-8")
    results = json.loads(text)["parts"]
    reasons = {name: result.get("reason") for name, result in results.items()}
    assert reasons == {
        "peerless": parts.REMEDIES["official"],
        "sound": None,
        "broken": "ValueError: a cause",
        "message": "the package x is missing; pip install x",
    }
    arguments = results["sound"]["results"]["ours <b>"].pop("arguments")
    assert arguments == ["--lwdetr", str(checkout), "--quick", "--device", "cpu"]
    assert results["sound"]["command"].endswith("--lwdetr LWDETR --quick --device cpu")

    page = (out / "benchmarks.html").read_text(encoding="utf-8")
    for expected in ("ours &lt;b&gt;", "1,234", "0.125", "a cause", "a processor", "pip install x"):
        assert expected in page, expected


def test_a_part_that_never_ends_is_stopped(
    parts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "endless.py"
    script.write_text("import time; time.sleep(600)", encoding="utf-8")
    monkeypatch.setattr(parts, "PARTS", (parts.Part("endless", "Title", str(script)),))
    runner = import_module("runner")
    content = runner.run_all(runner.Options(out=tmp_path, limit=0.5))
    assert content["parts"]["endless"]["reason"] == "was stopped after 0.5 seconds"


def test_a_part_that_runs_again_replaces_its_table_alone(
    parts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "sound.py"
    script.write_text(SCRIPT, encoding="utf-8")
    both = tuple(parts.Part(name, name, str(script)) for name in ("first", "second"))
    monkeypatch.setattr(parts, "PARTS", both)
    runner = import_module("runner")
    runner.run_all(runner.Options(out=tmp_path, only=("second",)))
    content = runner.run_all(runner.Options(out=tmp_path, only=("first",), quick=True))
    assert [(name, part["quick"]) for name, part in content["parts"].items()] == [
        ("first", True),
        ("second", False),
    ]
    with pytest.raises(SystemExit, match="there is no benchmark 'third'"):
        runner.run_all(runner.Options(out=tmp_path, only=("third",)))
