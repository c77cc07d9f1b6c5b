"""`groupdetr groups` on a run: every figure agrees with the other ways to compute it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import groupdetr
from groupdetr.checkpoints import native
from groupdetr.cli.main import main
from groupdetr.console.progress import CountProgress
from groupdetr.engine.run_folder import RunFolder
from groupdetr.errors import UsageError
from groupdetr.paper.fig4 import group_metrics
from groupdetr.tasks.detection2d.prediction import Detector
from groupdetr.tasks.result_formats import Metrics
from tests.json_docs import assert_documented
from tests.runs import train

OPTIONS = ["--workers", "0", "--device", "cpu"]


@pytest.fixture(scope="module")
def run(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run with two groups of eight queries."""
    return train(shapes, tmp_path_factory.mktemp("runs") / "run", "--steps", "30")


@pytest.fixture(scope="module")
def content(run: Path) -> Metrics:
    return groupdetr.compare_groups(run, workers=0, device="cpu", best=True)


@pytest.fixture(scope="module")
def identical(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights in which the queries of both groups are those of group 0."""
    detector = Detector(run, "cpu")
    with torch.no_grad():
        embedding = detector.model.get_parameter("queries.embedding")  # [K,N,C]
        embedding[1:] = embedding[:1]
    path = tmp_path_factory.mktemp("weights") / "identical.safetensors"
    native.save(detector.model, path, native.read_metadata(detector.path))
    return path


def test_the_json_is_documented_and_the_page_is_written(
    identical: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Identical groups have twins, which other small detectors may lack."""
    data = ["--data", str(shapes), "--split", "val", "--out", str(tmp_path)]
    assert main(["groups", str(identical), *data, *OPTIONS, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert_documented("groups", printed)
    assert printed == json.loads((tmp_path / "groups.json").read_text())
    page = (tmp_path / "report.html").read_text()
    assert "Every group is a detector" in page
    assert page.count("<p>group 1</p>") == 1, "the map of its queries"


def test_each_group_has_the_ap_of_val_per_group(run: Path, content: Metrics) -> None:
    """Although here all groups run in one pass."""
    metrics = groupdetr.evaluate(run, per_group=True, workers=0, device="cpu")
    expected = [group["AP"] for group in metrics["per_group"]]
    assert len(set(expected)) == 2, "the groups differ"
    assert [group["AP"] for group in content["per_group"]] == pytest.approx(expected, abs=1e-6)


def test_every_object_is_won_once_in_every_group(content: Metrics) -> None:
    objects = content["agreement"][0]["objects"]
    for group in range(2):
        queries = [row for row in content["query_use"]["per_query"] if row["group"] == group]
        assert sum(row["wins"] for row in queries) == objects


def test_the_fused_groups_have_the_ap_of_val_vote(run: Path, content: Metrics) -> None:
    metrics = groupdetr.evaluate(run, vote=2, workers=0, device="cpu")
    assert metrics.folder == run / "val-vote2"
    assert metrics["vote"] == 2
    assert content["vote"][-1]["groups"] == 2
    assert metrics["AP"] == pytest.approx(content["vote"][-1]["AP"], abs=1e-6)


def test_the_best_group_answers_in_the_weights_that_best_writes(
    run: Path, content: Metrics, shapes: Path, tmp_path: Path
) -> None:
    """And the best weights of the run stay as they are."""
    before = RunFolder(run).best.read_bytes()
    file = Path(content["best_weights"])
    assert file == run / "weights/best-group.safetensors"
    best = content["best_group"]
    metrics = groupdetr.evaluate(file, shapes, workers=0, device="cpu", out=tmp_path / "val")
    assert metrics["AP"] == pytest.approx(content["per_group"][best]["AP"], abs=1e-6)
    detector = Detector(file, "cpu")
    assert detector.recipe.inference_group == best
    assert detector.score == pytest.approx(metrics["score_threshold"], abs=1e-6)
    assert RunFolder(run).best.read_bytes() == before


def test_identical_groups_agree_about_everything(
    identical: Path, shapes: Path, tmp_path: Path
) -> None:
    """No detection is disputed, the fused boxes are those of one group, all queries are twins."""
    content = groupdetr.compare_groups(
        identical, shapes, split="val", workers=0, device="cpu", out=tmp_path / "out"
    )
    first, second = content["per_group"]
    assert first == second
    assert content["vote"][-1]["AP"] == pytest.approx(first["AP"], abs=1e-6)
    counts = content["agreement"][0]["detected_by"]
    assert counts[1] == 0, "one of two groups detects an object"
    use = content["query_use"]
    assert use["with_twin"] == 16
    copies = [row for row in use["nearest_twins"] if row["query"] == row["other_query"]]
    assert len(copies) == 8
    assert all(row["wins"] == row["shared_wins"] for row in copies)

    image = sorted((shapes / "images/val").iterdir())[0]
    (result,) = Detector(identical, "cpu", uncertainty=True).predict(image, score=0)
    assert len(result)
    np.testing.assert_allclose(result.disagreement, 0, atol=1e-5)
    np.testing.assert_allclose(result.uncertainty, 1 - result.scores, atol=1e-5)


def test_other_images_go_to_another_folder_and_best_refuses_them(run: Path, shapes: Path) -> None:
    content = groupdetr.compare_groups(run, split="train", workers=0, device="cpu")
    assert content.folder == run / "groups-train"
    assert content["images"] == 24
    with pytest.raises(UsageError, match="val split of the run"):
        groupdetr.compare_groups(run, split="train", best=True)
    with pytest.raises(UsageError, match="not the folder of a run"):
        groupdetr.compare_groups(RunFolder(run).best, shapes, best=True)


def test_files_of_others_are_not_replaced(run: Path, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(UsageError):
        groupdetr.compare_groups(run, workers=0, device="cpu", out=tmp_path)
    assert (tmp_path / "report.html").read_text() == "mine"


def test_one_group_and_groups_that_attend_to_each_other_are_refused(
    shapes: Path, tmp_path: Path
) -> None:
    one = train(shapes, tmp_path / "one", "--steps", "1", "--groups", "1")
    with pytest.raises(UsageError, match="one group"):
        groupdetr.compare_groups(one)
    for keywords in ({"uncertainty": True}, {"vote": 2}):
        with pytest.raises(UsageError, match="one group"):
            Detector(one, "cpu", **keywords)


def test_images_without_objects_are_refused_before_any_pass(
    run: Path, shapes: Path, tmp_path: Path
) -> None:
    """Crowds are no objects: no group has an AP, so none is the best one."""
    data = tmp_path / "data"
    shutil.copytree(shapes, data)
    file = data / "annotations/instances_val.json"
    content = json.loads(file.read_text())
    side = content["images"][0]["width"]
    mask = {"size": [side, side], "counts": [0, 100, side * side - 100]}
    for annotation in content["annotations"]:
        annotation |= {"iscrowd": 1, "segmentation": mask}
    file.write_text(json.dumps(content))
    with pytest.raises(UsageError, match="only those of crowds"):
        groupdetr.compare_groups(run, data, workers=0, device="cpu", out=tmp_path / "out")
    with pytest.raises(UsageError, match="only those of crowds"):
        groupdetr.evaluate(run, data=data, per_group=True, device="cpu", out=tmp_path / "out")
    with pytest.raises(UsageError, match="only those of crowds"):
        group_metrics(run, data, CountProgress("groups"))
