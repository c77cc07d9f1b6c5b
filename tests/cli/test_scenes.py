"""The verbs that know scenes, on a drawn nuScenes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from groupdetr import Detector, SceneDetector
from groupdetr.cli.main import main
from groupdetr.data.nuscenes.names import CLASSES
from groupdetr.data.nuscenes.synthetic import VERSION, SyntheticConfig, write
from groupdetr.data.nuscenes.version import load
from groupdetr.errors import UsageError
from groupdetr.evaluation.nuscenes import ERRORS
from groupdetr.evaluation.nuscenes_results import read_results
from groupdetr.tasks.detection3d.report import what_it_finds
from groupdetr.workflows import task_workflows as verbs

SHORT = [
    "--groups",
    "2",
    "--queries",
    "12",
    "--batch",
    "2",
    "--workers",
    "0",
    "--device",
    "cpu",
    "--eval-every",
    "1",
]


@pytest.fixture(scope="module", params=["petr-tiny", "petrv2-tiny"])
def run(
    request: pytest.FixtureRequest, scenes: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp(request.param) / "run"
    assert (
        main(
            [
                "train",
                str(scenes),
                "--model",
                request.param,
                "--steps",
                "4",
                *SHORT,
                "--out",
                str(folder),
            ]
        )
        == 0
    )
    return folder


def test_a_training_ends_with_a_score_and_a_page(run: Path) -> None:
    metrics = json.loads((run / "val/metrics.json").read_text())
    assert 0 <= metrics["NDS"] <= 1
    assert len(metrics["per_class"]) == 10
    page = (run / "report.html").read_text()
    assert "NDS" in page
    assert page.count("data:image") >= 1


def test_val_gives_a_score_to_every_group_and_writes_results(
    run: Path, scenes: Path, tmp_path: Path
) -> None:
    assert main(["val", str(run), "--per-group", "--workers", "0", "--out", str(tmp_path)]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["per_group"][0]["NDS"] == metrics["NDS"]
    assert len(metrics["per_group"]) == 2
    results = json.loads((tmp_path / "predictions.json").read_text())["results"]
    samples = json.loads((scenes / VERSION / "sample.json").read_text())
    assert results.keys() <= {sample["token"] for sample in samples}
    assert len(results) == 4


def test_val_tells_of_every_group_and_of_errors_of_every_class(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["val", str(run), "--per-group", "--workers", "0", "--out", str(tmp_path)]) == 0
    told = capsys.readouterr().out.splitlines()
    groups = next(i for i, line in enumerate(told) if line.split()[:2] == ["group", "NDS"])
    assert [line.split()[0] for line in told[groups + 1 : groups + 3]] == ["0", "1"]
    assert any(line.split() == ["class", "AP", *ERRORS, "objects"] for line in told)
    assert (tmp_path / "per_group.csv").read_text().startswith("group,NDS,mAP")
    assert len((tmp_path / "per_class.csv").read_text().splitlines()) == 1 + len(CLASSES)


def without_annotations(scenes: Path, folder: Path, split: str) -> Path:
    """A copy whose first sample of a split has none; of val, all have none."""
    shutil.copytree(scenes, folder)
    table = folder / VERSION / "sample_annotation.json"
    samples = load(folder).splits[split]
    bare = {sample.token for sample in (samples if split == "val" else samples[:1])}
    kept = [row for row in json.loads(table.read_text()) if row["sample_token"] not in bare]
    there = {row["token"] for row in kept}
    for row, way in product(kept, ("prev", "next")):
        row[way] = row[way] if row[way] in there else ""
    table.write_text(json.dumps(kept))
    return folder


def test_a_split_without_objects_is_not_evaluated_but_can_be_looked_at(
    run: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = without_annotations(scenes, tmp_path / "bare", "val")
    assert (
        main(
            ["val", str(run), "--data", str(data), "--workers", "0", "--out", str(tmp_path / "val")]
        )
        == 2
    )
    told = capsys.readouterr().err
    assert "split 'val' has no object" in told
    assert f"groupdetr predict {run} {data} --split val" in told
    assert (
        main(["predict", str(run), str(data), "--limit", "1", "--out", str(tmp_path / "predict")])
        == 0
    )


def test_a_page_draws_samples_without_objects(run: Path, scenes: Path, tmp_path: Path) -> None:
    data = without_annotations(scenes, tmp_path / "bare", "train")
    detector = SceneDetector(run, "cpu")
    (first,) = detector.predict(data, split="train", score=0.0, limit=1)
    assert len(first.truth) == len(first.best(len(first.truth))) == 0
    data = data.rename(tmp_path / "turned")
    (data / VERSION / "splits.json").write_text(json.dumps(turned(data)))
    assert "0 objects" in what_it_finds(detector, str(data))


def turned(data: Path) -> dict[str, list[str]]:
    """The names of scenes with train and val exchanged."""
    splits = load(data).splits
    return {
        to: sorted({sample.scene for sample in splits[of]})
        for of, to in (("train", "val"), ("val", "train"))
    }


def test_predict_goes_on_without_samples_that_cannot_be_read(
    run: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(scenes, data)
    first, *_, other = load(data).splits["val"]
    broken = first.frame().paths[3]
    broken.write_bytes(broken.read_bytes()[:200])
    assert (
        main(["predict", str(run), str(data), "--score", "0", "--out", str(tmp_path / "out")]) == 3
    )
    results = json.loads((tmp_path / "out/predictions.json").read_text())["results"]
    assert first.token not in results
    assert other.token in results
    told = capsys.readouterr().err
    assert "samples could not be read; the others are done" in told
    assert broken.name in told


def test_predict_draws_samples_of_the_runs_own_data_and_writes_results(
    run: Path, scenes: Path, tmp_path: Path
) -> None:
    assert main(["predict", str(run), "--score", "0", "--limit", "2", "--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "predictions.json").read_text())["results"]
    val = load(scenes).splits["val"]
    assert list(results) == [val[0].token, val[2].token], "spread over the split"
    assert {path.name for path in tmp_path.glob("*.jpg")} == {
        f"{val[i].scene}-{val[i].token}.jpg" for i in (0, 2)
    }
    with Image.open(next(tmp_path.glob("*.jpg"))) as drawn:
        assert drawn.width > 3 * 640, "three cameras in a row, and the view from above"
    rows = read_results(tmp_path / "predictions.json", list(results))
    assert all(len(boxes) == len(results[token]) for boxes, token in zip(rows, results))


def test_predict_takes_another_split_and_the_folder_of_a_version(
    run: Path, scenes: Path, tmp_path: Path
) -> None:
    arguments = [
        "predict",
        str(run),
        str(scenes / VERSION),
        "--split",
        "train",
        "--out",
        str(tmp_path),
    ]
    assert main([*arguments, "--score", "0"]) == 0
    results = json.loads((tmp_path / "predictions.json").read_text())["results"]
    assert list(results) == [sample.token for sample in load(scenes).splits["train"]]
    assert main([*arguments[:4], "unknown"]) == 3, "no such split"


def test_a_high_score_leaves_pictures_with_what_is_there_alone(run: Path, tmp_path: Path) -> None:
    """And a result file without a box, which the devkit would refuse, but which tells the truth."""
    assert (
        main(["predict", str(run), "--score", "0.999", "--limit", "1", "--out", str(tmp_path)]) == 0
    )
    (rows,) = json.loads((tmp_path / "predictions.json").read_text())["results"].values()
    assert rows == []


def test_the_interface_in_python_says_boxes_in_the_frame_of_the_lidar(
    run: Path, scenes: Path
) -> None:
    detector = SceneDetector(run, "cpu")
    first, second = detector.predict(scenes, score=0.0, limit=2)
    assert first.boxes.shape == (len(first), 9)
    assert (np.diff(first.scores) <= 0).all()
    assert set(first.names) <= set(CLASSES)
    assert np.abs(first.boxes[:, :2]).max() <= 61.2
    assert first.sample.token != second.sample.token
    truth = first.truth
    assert len(truth) == first.sample.truth.learned.sum() > 0
    assert len(first.best(3)) == 3
    strict = detector.predict(scenes, score=float(first.scores[4]), limit=1)[0]
    assert 5 <= len(strict) < len(first)


def test_pictures_are_refused_in_words(
    run: Path, scenes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = next((scenes / "samples").rglob("*.jpg"))
    assert main(["predict", str(run), str(picture)]) == 2
    assert "six cameras" in capsys.readouterr().err
    assert main(["predict", str(run), str(scenes / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err
    with pytest.raises(UsageError, match="sees scenes, not pictures"):
        Detector(run, "cpu")


def test_the_demo_compares_scenes_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = SyntheticConfig(samples=2, width=160, height=90)
    of_scenes = verbs.VERBS["scenes"]
    exhibit = replace(of_scenes.exhibit, draw=lambda folder: write(config, folder), count=2)
    monkeypatch.setitem(verbs.VERBS, "scenes", replace(of_scenes, exhibit=exhibit))
    arguments = [
        "demo",
        "--model",
        "petr-tiny",
        "--epochs",
        "1",
        "--groups",
        "2",
        "--out",
        str(tmp_path / "demo"),
    ]
    assert main(arguments) == 0
    told = json.loads((tmp_path / "demo/metrics.json").read_text())
    assert [row["groups"] for row in told["runs"]] == [1, 2]
    assert {"NDS", "mAP", "mATE", "seconds"} <= told["runs"][0].keys()
    page = (tmp_path / "demo/report.html").read_text()
    assert "NDS by epoch" in page
    assert "drawn scenes" in page
    assert page.count("data:image") == 2 * 2 + 2, (
        "two samples by two detectors, and two with the groups' queries"
    )
    assert ">nan" not in page


def test_check_knows_a_version(scenes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(scenes)]) == 0
    assert main(["check", str(scenes / VERSION), "--no-decode"]) == 0
    assert "0 errors" in capsys.readouterr().out


def test_check_writes_what_is_wrong_with_splits_and_versions_in_its_own_form(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(scenes / VERSION, tmp_path / "data/one")
    (tmp_path / "data/one/splits.json").write_text("{train")
    arguments = ["check", str(tmp_path / "data"), "--json", "--out", str(tmp_path / "out")]
    assert main(arguments) == 3
    assert [error["code"] for error in json.loads(capsys.readouterr().out)["errors"]] == [
        "bad-splits"
    ]
    shutil.copytree(tmp_path / "data/one", tmp_path / "data/two")
    assert main(arguments) == 3
    assert (
        "2 versions"
        in json.loads((tmp_path / "out/check.json").read_text())["errors"][0]["message"]
    )
