"""The verbs that know scenes, on a drawn nuScenes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from groupdetr.cli import main
from groupdetr.data.nuscenes.synthetic import VERSION

SHORT = ["--groups", "2", "--queries", "12", "--batch", "2", "--workers", "0", "--device", "cpu", "--eval-every", "1"]


@pytest.fixture(scope="module", params=["petr-tiny", "petrv2-tiny"])
def run(request: pytest.FixtureRequest, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param) / "run"
    assert main(["train", str(scenes), "--model", request.param, "--steps", "4", *SHORT, "--out", str(folder)]) == 0
    return folder


def test_a_training_ends_with_a_score_and_a_page(run: Path) -> None:
    metrics = json.loads((run / "val/metrics.json").read_text())
    assert 0 <= metrics["NDS"] <= 1
    assert len(metrics["per_class"]) == 10
    page = (run / "report.html").read_text()
    assert "NDS" in page
    assert page.count("data:image") >= 1


def test_val_gives_a_score_to_every_group_and_writes_results(run: Path, scenes: Path, tmp_path: Path) -> None:
    assert main(["val", str(run), "--per-group", "--workers", "0", "--out", str(tmp_path)]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["per_group"][0]["NDS"] == metrics["NDS"]
    assert len(metrics["per_group"]) == 2
    results = json.loads((tmp_path / "predictions.json").read_text())["results"]
    samples = json.loads((scenes / VERSION / "sample.json").read_text())
    assert results.keys() <= {sample["token"] for sample in samples}
    assert len(results) == 4


def test_pictures_and_demos_are_refused_in_words(run: Path, scenes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = next((scenes / "samples").rglob("*.jpg"))
    assert main(["predict", str(run), str(picture)]) == 2
    assert "six cameras" in capsys.readouterr().err
    assert main(["demo", "--model", "petr-tiny"]) == 2


def test_check_knows_a_version(scenes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(scenes)]) == 0
    assert main(["check", str(scenes / VERSION), "--no-decode"]) == 0
    assert "0 errors" in capsys.readouterr().out
