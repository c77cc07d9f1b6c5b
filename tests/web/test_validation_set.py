"""Where the detections of the validation set come from, and what the page says without them."""

from __future__ import annotations

import os
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import groupdetr
from groupdetr.cli.main import main
from groupdetr.data.layouts import load
from groupdetr.data.records import CocoSplit
from groupdetr.errors import UsageError
from groupdetr.tasks.detection2d.prediction import Detector
from groupdetr.web.server import WebServer
from groupdetr.web.validation_set import ValidationSet
from groupdetr.workflows.ui import add_validation_set, open_run


@pytest.fixture(scope="module")
def split(shapes: Path) -> CocoSplit:
    return load(shapes).splits["train"]


@pytest.fixture(scope="module")
def evaluated(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `groupdetr val` writes with a batch of one. Tests change a copy."""
    folder = tmp_path_factory.mktemp("evaluated") / "val"
    groupdetr.evaluate(run, batch=1, workers=0, device="cpu", out=folder)
    return folder


def test_the_detections_are_those_of_val_with_a_batch_of_one(
    evaluated: Path, server: WebServer
) -> None:
    validation = server.session.validation
    assert validation is not None
    assert not validation.is_recorded
    assert validation.split is not None
    recorded = ValidationSet(
        validation.detector, threading.Lock(), validation.read, evaluated, validation.data
    )
    recorded.compute()
    assert recorded.state == "done"
    assert recorded.is_recorded
    for computed, read in zip(validation.detections, recorded.detections, strict=True):
        assert torch.equal(computed.labels, read.labels)
        assert torch.allclose(computed.boxes.double(), read.boxes, atol=1e-4)
    assert recorded.mistakes(0.1).summary() == validation.mistakes(0.1).summary()


@pytest.mark.parametrize("change", ["weights", "data", "images", "age", "broken"])
def test_recorded_detections_of_another_evaluation_are_not_used(
    run: Path, evaluated: Path, server: WebServer, tmp_path: Path, change: str
) -> None:
    folder = shutil.copytree(evaluated, tmp_path / "val")
    metrics = folder / "metrics.json"
    if change == "age":
        weights = run / "weights/best.safetensors"
        os.utime(folder / "predictions.json", (0, weights.stat().st_mtime - 1))
    elif change == "broken":
        (folder / "predictions.json").write_text('[{"image_id": 1}]')
    else:
        key = f'"{change}": '
        text = metrics.read_text()
        assert key in text
        metrics.write_text(text.replace(key, f'{key}99, "former_{change}": '))
    validation = server.session.validation
    assert validation is not None
    other = ValidationSet(
        validation.detector, threading.Lock(), validation.read, folder, validation.data
    )
    other.compute()
    assert other.state == "done"
    assert not other.is_recorded


def test_a_dataset_that_is_gone_is_a_message_and_the_page_still_detects(
    run: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    config = copy / "config.yaml"
    text = config.read_text()
    config.write_text(text.replace("data: ", f"data: {tmp_path / 'gone'} #"))
    session = open_run(copy, "cpu", None)
    add_validation_set(session, copy, None, None, None, None)
    assert session.validation is not None
    session.validation.compute()
    assert session.validation.state == "failed"
    assert "gone" in session.validation.progress()["where"]
    with pytest.raises(UsageError, match="not computed yet"):
        session.errors(0.5, "missed", None, 0)


def test_a_split_without_annotations_is_a_message(run: Path, split: CocoSplit) -> None:
    none = np.zeros(0, dtype=np.int64)
    records = []
    for record in split.records:
        no_boxes = np.zeros((0, 4))
        records.append(
            replace(
                record,
                boxes=no_boxes,
                labels=none,
                areas=np.zeros(0),
                crowd=none.astype(bool),
                annotation_ids=(),
            )
        )
    empty = replace(split, records=tuple(records))
    validation = ValidationSet(Detector(run, "cpu"), threading.Lock(), lambda: empty)
    validation.compute()
    progress = validation.progress()
    assert progress["state"] == "failed"
    assert "no annotations" in progress["error"]
    assert "--split or --data" in progress["remedy"]


def test_weights_without_a_run_need_a_dataset(run: Path, shapes: Path) -> None:
    weights = run / "weights/best.safetensors"
    session = open_run(weights, "cpu", None)
    add_validation_set(session, weights, None, None, None, None)
    assert session.validation is None
    assert "--data DATA" in session.info()["no_data"]
    add_validation_set(session, weights, shapes, None, "train", None)
    assert session.validation is not None
    assert len(session.validation.read()) == 24


def test_data_that_cannot_be_read_is_an_error_before_the_page_is_served(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ui", str(run), "--data", str(tmp_path / "none"), "--port", "0"]) == 3
    output = capsys.readouterr()
    assert "none" in output.err
    assert "http://" not in output.out


def test_two_pages_that_ask_at_once_start_one_computation(
    server: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class SlowThread(threading.Thread):
        def __init__(self, target: Any, daemon: bool) -> None:
            time.sleep(0.2)
            super().__init__(target=target, daemon=daemon)

    computations = []
    validation = ValidationSet(server.session.detector, threading.Lock(), pytest.fail)
    monkeypatch.setattr(validation, "compute", lambda: computations.append(1))
    pages = [threading.Thread(target=validation.start) for _ in range(2)]
    monkeypatch.setattr("groupdetr.web.validation_set.threading.Thread", SlowThread)
    for page in pages:
        page.start()
    for page in pages:
        page.join()
    validation.stop()
    assert len(computations) == 1
