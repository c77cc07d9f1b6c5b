"""The commands with scenes of six cameras, on a synthetic nuScenes dataset."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from shlex import split
from typing import Any

import numpy as np
import pytest
from PIL import Image

from groupdetr import Detector, SceneDetector
from groupdetr.cli.main import main
from groupdetr.data.nuscenes.names import CLASSES
from groupdetr.data.nuscenes.synthetic import VERSION, SyntheticNuScenesConfig
from groupdetr.data.nuscenes.version import load
from groupdetr.errors import UsageError
from groupdetr.evaluation.nuscenes import ERRORS
from groupdetr.evaluation.nuscenes_results import read_results
from groupdetr.paper import parallel_runs, small_scale
from groupdetr.tasks.detection3d.report import detections_section
from tests.json_docs import assert_documented
from tests.runs import train_here

SHORT = split("--steps 4 --groups 2 --queries 12 --batch 2 --workers 0 --device cpu --eval-every 1")


@pytest.fixture(
    scope="module",
    # PETRv2 is a PETR that also takes the frame before; the demo below trains a PETR.
    params=["petrv2-tiny", pytest.param("petr-tiny", marks=pytest.mark.slow)],
)
def run(
    request: pytest.FixtureRequest, scenes: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run of a 3D detector with two groups."""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    options = ["--model", request.param, *SHORT, "--out", str(folder)]
    assert main(["train", str(scenes), *options]) == 0
    return folder


def read_results_by_sample(out: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the boxes of every sample in predictions.json."""
    return json.loads((out / "predictions.json").read_text())["results"]


def test_a_training_ends_with_nds_and_a_page(run: Path) -> None:
    metrics = json.loads((run / "val/metrics.json").read_text())
    assert 0 <= metrics["NDS"] <= 1
    assert len(metrics["per_class"]) == 10
    page = (run / "report.html").read_text()
    assert "NDS" in page
    assert page.count("data:image") >= 1


# val


def test_val_writes_metrics_groups_classes_and_results(
    run: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["val", str(run), "--per-group", "--workers", "0", "--out", str(tmp_path)]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["per_group"][0]["NDS"] == metrics["NDS"], "inference runs the primary group"
    assert len(metrics["per_group"]) == 2
    samples = json.loads((scenes / VERSION / "sample.json").read_text())
    results = read_results_by_sample(tmp_path)
    assert results.keys() <= {sample["token"] for sample in samples}
    assert len(results) == 4
    assert (tmp_path / "per_group.csv").read_text().startswith("group,NDS,mAP")
    assert len((tmp_path / "per_class.csv").read_text().splitlines()) == 1 + len(CLASSES)

    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["class", "AP", *ERRORS, "objects"] in rows
    header = next(i for i, row in enumerate(rows) if row[:2] == ["group", "NDS"])
    assert [row[0] for row in rows[header + 1 : header + 3]] == ["0", "1"]


def test_the_train_split_is_evaluated_beside_the_metrics_of_the_training(
    run: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(run, tmp_path / "run")
    before = (run / "val/metrics.json").read_bytes()
    assert main(["val", str(run), "--split", "train", "--workers", "0"]) == 0
    metrics = json.loads((run / "val-train/metrics.json").read_text())
    assert (metrics["split"], metrics["images"]) == ("train", 4)
    assert (run / "val/metrics.json").read_bytes() == before


@pytest.mark.parametrize("command", ["check", "train", "val"])
def test_a_folder_of_images_is_refused_for_scenes(
    command: str, run: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = {
        "check": ["check", str(scenes)],
        "train": ["train", str(scenes), "--model", "petr-tiny", "--out", str(tmp_path / "run")],
        "val": ["val", str(run), "--data", str(scenes), "--out", str(tmp_path / "val")],
    }
    assert main([*arguments[command], "--images", str(tmp_path)]) == 2
    assert "--images is for the annotation files of single images" in capsys.readouterr().err


def copy_without_annotations(scenes: Path, folder: Path, tokens: set[str]) -> None:
    """Copy a dataset, but without the annotations of the samples with these tokens."""
    shutil.copytree(scenes, folder)
    path = folder / VERSION / "sample_annotation.json"
    rows = json.loads(path.read_text())
    rows = [row for row in rows if row["sample_token"] not in tokens]
    remaining = {row["token"] for row in rows}
    # The annotations of an object are a linked list, which must not refer to removed rows.
    for row in rows:
        for neighbour in ("prev", "next"):
            if row[neighbour] not in remaining:
                row[neighbour] = ""
    path.write_text(json.dumps(rows))


def test_a_split_without_objects_is_not_evaluated_but_can_be_predicted(
    run: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    copy_without_annotations(scenes, data, {s.token for s in load(scenes).splits["val"]})
    options = ["--data", str(data), "--workers", "0", "--out", str(tmp_path / "val")]
    assert main(["val", str(run), *options]) == 2
    error = capsys.readouterr().err
    assert "split 'val' has no object" in error
    assert f"groupdetr predict {run} {data} --split val" in error
    options = ["--limit", "1", "--out", str(tmp_path / "predict")]
    assert main(["predict", str(run), str(data), *options]) == 0


def test_samples_without_objects_are_drawn_on_the_page(
    run: Path, scenes: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    copy_without_annotations(scenes, data, {load(scenes).splits["train"][0].token})
    detector = SceneDetector(run, "cpu")
    (first,) = detector.predict(data, split="train", score=0.0, limit=1)
    assert len(first.truth) == len(first.best(len(first.truth))) == 0
    # The page shows val.
    (data / VERSION / "splits.json").write_text(json.dumps(swap_splits(data)))
    assert "0 objects" in detections_section(detector, load(data))


def swap_splits(data: Path) -> dict[str, list[str]]:
    """Return splits.json with the scenes of train and val exchanged."""
    splits = load(data).splits
    scenes = {name: sorted({sample.scene for sample in splits[name]}) for name in splits}
    return {"train": scenes["val"], "val": scenes["train"]}


# predict


def test_options_of_images_are_refused_for_scenes(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They would have no effect."""
    for option in split(
        "--save-txt --show-groups --batch=2 --workers=2 --precision=bf16 --uncertainty --vote=2"
    ):
        assert main(["predict", str(run), option, "--out", str(tmp_path / "out")]) == 2
        assert option.partition("=")[0] in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_commands_that_compare_groups_in_images_are_refused_for_scenes(
    run: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, message in (
        (["val", str(run), "--vote", "2"], "--vote fuses boxes in images"),
        (["val", str(run), "--precision", "bf16"], "--precision is for images"),
        (["groups", str(run)], "groupdetr val"),
        (["check", str(scenes), "--with", str(run)], "label errors are found in images"),
    ):
        assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_predict_skips_samples_that_cannot_be_read(
    run: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(scenes, data)
    first, *_, last = load(data).splits["val"]
    broken = first.frame().paths[3]
    broken.write_bytes(broken.read_bytes()[:200])
    assert main(["predict", str(run), str(data), "--score", "0", "--out", str(out)]) == 3
    results = read_results_by_sample(out)
    assert first.token not in results
    assert last.token in results
    error = capsys.readouterr().err
    assert "samples could not be read; the others are done" in error
    assert broken.name in error


def test_predict_without_inputs_draws_samples_of_the_runs_own_data(
    run: Path, scenes: Path, tmp_path: Path
) -> None:
    assert main(["predict", str(run), "--score", "0", "--limit", "2", "--out", str(tmp_path)]) == 0
    results = read_results_by_sample(tmp_path)
    val = load(scenes).splits["val"]
    assert list(results) == [val[0].token, val[2].token], "evenly spread over the split"
    names = {f"{sample.scene}-{sample.token}.jpg" for sample in (val[0], val[2])}
    assert {path.name for path in tmp_path.glob("*.jpg")} == names
    with Image.open(min(tmp_path.glob("*.jpg"))) as image:
        assert image.width > 3 * 640, "three cameras in a row, and the bird's-eye view"
    boxes = read_results(tmp_path / "predictions.json", list(results))
    for sample_boxes, rows in zip(boxes, results.values()):
        assert len(sample_boxes) == len(rows)


def test_predict_takes_the_folder_of_a_version_and_any_split(
    run: Path, scenes: Path, tmp_path: Path
) -> None:
    arguments = ["predict", str(run), str(scenes / VERSION), "--score", "0", "--out", str(tmp_path)]
    assert main([*arguments, "--split", "train"]) == 0
    train_tokens = [sample.token for sample in load(scenes).splits["train"]]
    assert list(read_results_by_sample(tmp_path)) == train_tokens
    assert main([*arguments, "--split", "unknown"]) == 3


def test_with_a_high_score_predict_writes_results_without_boxes(run: Path, tmp_path: Path) -> None:
    """The devkit would refuse such a file, but it is what the detector found."""
    options = ["--score", "0.999", "--limit", "1", "--out", str(tmp_path)]
    assert main(["predict", str(run), *options]) == 0
    assert list(read_results_by_sample(tmp_path).values()) == [[]]


def test_the_scene_detector_returns_boxes_in_the_lidar_frame(run: Path, scenes: Path) -> None:
    detector = SceneDetector(run, "cpu")
    first, second = detector.predict(scenes, score=0.0, limit=2)
    assert first.boxes.shape == (len(first), 9)
    assert (np.diff(first.scores) <= 0).all()
    assert set(first.names) <= set(CLASSES)
    assert np.abs(first.boxes[:, :2]).max() <= 61.2
    assert first.sample.token != second.sample.token
    assert len(first.truth) == first.sample.truth.trainable.sum() > 0
    assert len(first.best(3)) == 3
    fifth_score = float(first.scores[4])
    (fewer,) = detector.predict(scenes, score=fifth_score, limit=1)
    assert 5 <= len(fewer) < len(first)


def test_a_detector_of_scenes_refuses_images(
    run: Path, scenes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = min((scenes / "samples").rglob("*.jpg"))
    assert main(["predict", str(run), str(image)]) == 2
    assert "six cameras" in capsys.readouterr().err
    assert main(["predict", str(run), str(scenes / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err
    with pytest.raises(UsageError, match="trained on scenes, not on images"):
        Detector(run, "cpu")


def test_the_json_output_has_the_documented_keys(
    run: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def printed_json(*arguments: str) -> Any:
        capsys.readouterr()
        assert main([*arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    out = ["--out", str(tmp_path)]
    metrics = printed_json("val", str(run), "--per-group", "--workers", "0", *out)
    assert_documented("val", metrics)
    results = printed_json("predict", str(run), "--score", "0", "--limit", "1", *out)
    assert_documented("predict: scenes", results)
    # An image that cannot be read is an error, and a sample without objects is a warning.
    data = tmp_path / "data"
    copy_without_annotations(scenes, data, {load(scenes).splits["train"][0].token})
    min((data / "samples").rglob("*.jpg")).write_bytes(b"not an image")
    assert main(["check", str(data), "--json"]) == 3
    assert_documented("check", json.loads(capsys.readouterr().out))


# demo and check


def test_the_demo_compares_detectors_of_scenes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = SyntheticNuScenesConfig(samples=2, width=160, height=90)
    monkeypatch.setattr(small_scale, "SCENES", config)
    monkeypatch.setattr(parallel_runs, "start_process", train_here)
    out = tmp_path / "demo"
    options = ["--model", "petr-tiny", "--epochs", "1", "--groups", "2", "--out", str(out)]
    capsys.readouterr()
    assert main(["demo", *options, "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert results == json.loads((out / "results.json").read_text())
    assert_documented("paper: results", results)
    assert [row["runs"][0]["groups"] for row in results["configurations"]] == [1, 1, 2]
    assert {"NDS", "mAP", "mATE"} <= results["configurations"][0]["runs"][0]["metrics"].keys()
    page = (out / "report.html").read_text()
    assert "NDS by epoch" in page
    # Two samples by three detectors, and two samples with the queries of all groups.
    assert page.count("data:image") == 2 * 3 + 2
    assert ">nan" not in page


def test_check_takes_a_version_and_the_folder_of_its_tables(
    scenes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(scenes)]) == 0
    assert main(["check", str(scenes / VERSION), "--no-decode"]) == 0
    assert "0 errors" in capsys.readouterr().out


def test_check_reports_broken_splits_and_several_versions(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(scenes / VERSION, data / "one")
    (data / "one/splits.json").write_text("{train")
    arguments = ["check", str(data), "--json", "--out", str(out)]
    assert main(arguments) == 3
    errors = json.loads(capsys.readouterr().out)["errors"]
    assert [error["code"] for error in errors] == ["bad-splits"]
    shutil.copytree(data / "one", data / "two")
    assert main(arguments) == 3
    (error,) = json.loads((out / "check.json").read_text())["errors"]
    assert "2 versions" in error["what"]
