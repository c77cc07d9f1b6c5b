"""Cached features of frozen parts: the same training bit for bit, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from shlex import split
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate import Accelerator
from PIL import Image

from groupdetr.cli.main import main
from groupdetr.data.dataset import SampleIndex
from groupdetr.engine import feature_cache
from groupdetr.engine.feature_cache import FeatureCache
from groupdetr.settings import Settings
from groupdetr.tasks.detection2d.task import DetectionTask
from tests.claims.detectors import FAST, build
from tests.pretended_device import PRETENDED, pretended_device
from tests.runs import (
    evaluations,
    is_identical,
    load_checkpoint,
    losses_by_step,
    train,
    train_arguments,
)

# More than one epoch of 24 images, in batches that do not divide them
OPTIONS = split("--steps 4 --batch 10 --ema 0.9 --workers 0")


def assert_same_training(
    shapes: Path, tmp_path: Path, options: list[str], *, resumes: bool = False
) -> None:
    """Assert that a training with cached features equals the one without, bit for bit."""
    plain = train(shapes, tmp_path / "plain", *options)
    run = tmp_path / "cached"
    cached = [*options, "--cache-features"]
    if resumes:
        train(shapes, run, *cached, "--stop-after", "2")
        assert main(["train", "--resume", str(run)]) == 0
    else:
        train(shapes, run, *cached)
    assert is_identical(load_checkpoint(run), load_checkpoint(plain))
    assert losses_by_step(run) == losses_by_step(plain)
    assert evaluations(run) == evaluations(plain)


@pytest.mark.parametrize(
    ("model", "augment", "parts"),
    [
        ("conditional-detr-tiny", "flip", "backbone encoder"),
        ("dino-tiny", "none", "backbone"),
        pytest.param("dn-detr-tiny", "none", "backbone encoder", marks=pytest.mark.slow),
        pytest.param("dab-deformable-detr-tiny", "flip", "backbone", marks=pytest.mark.slow),
        # The points of its masks are drawn at random, so only its feature maps are cached.
        pytest.param("mask2former-tiny", "flip", "backbone encoder", marks=pytest.mark.slow),
    ],
)
def test_cached_features_give_the_same_training_bit_for_bit(
    shapes: Path, tmp_path: Path, model: str, augment: str, parts: str
) -> None:
    options = [*OPTIONS, *split(f"--model {model} --augment {augment}")]
    options += split("--set dropout=0.1 num_queries=8")
    assert_same_training(shapes, tmp_path, [*options, "--freeze", *parts.split()])


def test_a_run_with_cached_features_resumes_bit_for_bit(shapes: Path, tmp_path: Path) -> None:
    options = [
        *OPTIONS,
        *split("--augment flip --accumulate 2 --group-chunk 1 --freeze backbone encoder"),
    ]
    assert_same_training(shapes, tmp_path, options, resumes=True)


def test_features_that_do_not_fit_into_memory_are_in_files_that_are_deleted(
    shapes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(feature_cache, "MEMORY_SHARE", 0.0)
    options = [*OPTIONS, *split("--augment none --precision bf16 --freeze backbone")]
    assert_same_training(shapes, tmp_path, options)
    output = capsys.readouterr().out
    assert "features of 24 images" in output
    assert "in files in" in output
    assert not list((tmp_path / "cached").glob("features*"))


def test_a_gpu_gets_the_features_without_a_wait_of_the_host(shapes: Path, tmp_path: Path) -> None:
    dataset = DetectionTask(
        DetectionTask.read(shapes, None), Settings(imgsz=48, augment="none"), 10
    ).train
    accelerator = Accelerator(cpu=True)
    run = SimpleNamespace(path=tmp_path)
    plan: Any = SimpleNamespace(accelerator=accelerator, micro_batch_size=2, workers=0, run=run)
    cache = FeatureCache(plan, dataset, build(FAST["dino"]), log=lambda _: None)
    (batch,) = cache.batches([[SampleIndex(0, 3), SampleIndex(0, 0)]])
    with pretended_device() as device:
        features = batch.images(PRETENDED)
        assert not device.waits
        assert all(x.device == PRETENDED for x in (*features.maps, features.images.padding))


def test_the_size_is_printed_before_and_is_that_of_all_tokens(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*OPTIONS, *split("--augment none --cache-features --freeze backbone encoder")]
    options += split("--set channels=32")
    train(shapes, tmp_path / "run", *options)
    output = capsys.readouterr().out
    # 48 pixels at stride 8 are 6 x 6 tokens of 32 floats.
    each = 6 * 6 * 32 * 4
    assert f"features of 24 images: {feature_cache.format_bytes(24 * each)} in memory" in output
    assert output.index("features of 24 images") < output.index("step 1/4")


def write_with_another_size(source: Path, folder: Path) -> Path:
    """Copy a dataset, and make one of its training images wider."""
    shutil.copytree(source, folder)
    file = folder / "annotations/instances_train.json"
    content = json.loads(file.read_text())
    image = content["images"][0]
    (path,) = folder.rglob(f"*train*/{image['file_name']}")
    image["width"] += 16
    Image.new("RGB", (image["width"], image["height"])).save(path)
    file.write_text(json.dumps(content))
    return folder


def test_images_of_several_sizes_are_refused_before_a_folder_is_written(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_with_another_size(shapes, tmp_path / "data")
    options = [*OPTIONS, *split("--augment none --freeze backbone --cache-features")]
    assert main(train_arguments(data, tmp_path / "run", *options)) == 2
    assert "images of one size" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--augment none", "add --freeze backbone"),
        ("--augment none --freeze encoder", "add --freeze backbone"),
        ("--augment detr --freeze backbone", "choose --augment flip or none"),
        ("--augment none+photometric --freeze backbone", "choose --augment flip or none"),
    ],
)
def test_features_that_change_are_refused_with_the_remedy(
    shapes: Path, tmp_path: Path, options: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = train_arguments(shapes, tmp_path / "run", *split(options), "--cache-features")
    assert main(arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_scenes_are_refused(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", str(scenes), "--model", "petr-tiny", "--out", str(tmp_path / "run")]
    options = split("--augment none --freeze backbone --cache-features --workers 0 --device cpu")
    assert main([*arguments, *options]) == 2
    assert "detects objects in scenes" in capsys.readouterr().err
