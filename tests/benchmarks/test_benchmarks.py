"""Every benchmark runs, and what it compares computes the same as ours."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn
from torch.autograd import DeviceType

from tests.benchmarks.conftest import BENCHMARKS

Run = Callable[..., dict[str, dict[str, Any]]]
TINY = {"model": "conditional-detr-tiny", "side": 64, "rounds": 1}
CRITERION = {"rounds": 1, "layers": 2, "groups": 2, "queries": 100}


def test_a_step_with_chunks_with_drawn_groups_and_with_cached_features(run: Run) -> None:
    rows = run(
        "step",
        **TINY,
        groups=(1, 3),
        group_chunk=1,
        groups_per_step=2,
        freeze=("backbone", "encoder"),
        cache_features=True,
        peak=False,
    )
    assert list(rows) == [
        "K = 1",
        "K = 3",
        "K = 3 in chunks of 1",
        "2 of K = 3",
        "K = 3, cached features",
    ]
    # Chunks keep the memory of one group, and no arithmetic is done twice.
    kept = {name: row["kept, MiB"] for name, row in rows.items()}
    assert kept["K = 3 in chunks of 1"] < kept["K = 3"]
    assert rows["K = 3, cached features"]["GFLOP"] < rows["K = 3"]["GFLOP"]


def test_features_are_cached_of_a_frozen_backbone_only(run: Run) -> None:
    with pytest.raises(SystemExit, match="needs a frozen backbone"):
        run("step", **TINY, freeze=("encoder",), cache_features=True, peak=False)


def test_a_step_of_scenes(run: Run) -> None:
    sizes = {"height": 32, "width": 64, "queries": 10}
    rows = run("step", model="petr-tiny", **sizes, batch=1, rounds=1, groups=(1,), peak=False)
    assert rows["K = 1"]["GFLOP"] > 0


@pytest.mark.usefixtures("run")
def test_the_annotation_of_an_optimizer_is_no_kernel() -> None:
    queued_steps = import_module("queued_steps")

    def on_gpu(name: str, start: float, end: float, is_user_annotation: bool = False) -> Any:
        time_range = SimpleNamespace(start=start, end=end)
        return SimpleNamespace(
            name=name,
            device_type=DeviceType.CUDA,
            is_user_annotation=is_user_annotation,
            time_range=time_range,
        )

    events = [on_gpu("Memcpy", 0, 1), *(on_gpu("gemm", 2 * i, 2 * i + 1) for i in (1, 2, 3))]
    events.append(on_gpu("Optimizer.step#AdamW.step", 2, 7, is_user_annotation=True))
    costs = queued_steps.costs(events)
    assert (costs["kernels"], costs["busy"]) == (1, 4 / 7)


def test_the_steps_before_a_limit_of_time_are_kept(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queued_steps = import_module("queued_steps")
    results = iter([{"step, ms": 1.0}])
    monkeypatch.setattr(queued_steps, "row_of", lambda *_: next(results))
    with pytest.raises(StopIteration):
        run("queued_steps", **queued_steps.QUICK)
    rows = json.loads((tmp_path / "queued_steps.json").read_text())["results"]
    assert list(rows.values()) == [{"step, ms": 1.0}]


def test_our_criterion_is_the_usual_form(run: Run) -> None:
    rows = run("criterion", **CRITERION)
    errors = [row["error"] for row in rows.values() if "error" in row]
    assert len(errors) == 2 * (1 + 4)  # two criteria: "host", and four numbers of objects
    assert max(errors) < 1e-5


@pytest.mark.slow
@pytest.mark.fair_sample
def test_our_criterion_is_that_of_lwdetr_and_rfdetr(run: Run, lwdetr: Path, rfdetr: Path) -> None:
    rows = run("criterion", **CRITERION, lwdetr=lwdetr, rfdetr=rfdetr)
    for peer in ("LW-DETR", "rfdetr"):
        errors = [
            row["error"]
            for name, row in rows.items()
            if name.endswith(f", {peer}") and "error" in row
        ]
        assert len(errors) == 5
        assert max(errors) < 1e-5, peer
        assert f"7 + 7 objects, matcher, {peer}" in rows


def test_solvers(run: Run) -> None:
    rows = run("solvers", rounds=1, groups=1)
    # With four numbers of objects and two kinds of costs
    assert sum(name.endswith(", usual") for name in rows) == 8
    assert sum(name.endswith(", scipy") for name in rows) == 8


def test_attention_has_the_results_of_its_other_forms(run: Run) -> None:
    rows = run("attention", rounds=1, groups=2, queries=10, height=4, width=5, channels=32, heads=4)
    assert len(rows) == 6
    assert max(row["error"] for row in rows.values()) < 1e-5


def test_no_layer_of_another_form_is_built_in_a_timed_round(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []
    build = nn.MultiheadAttention.__init__

    def count_and_build(self: nn.MultiheadAttention, *args: Any, **options: Any) -> None:
        built.append(self)
        build(self, *args, **options)

    monkeypatch.setattr(nn.MultiheadAttention, "__init__", count_and_build)
    run("attention", kinds=("self",), rounds=3, groups=2, queries=10, channels=32, heads=4)
    assert len(built) == 1  # by the round that warms up


@pytest.mark.slow
@pytest.mark.fair_sample
def test_self_attention_of_lwdetr_is_ours(run: Run, lwdetr: Path) -> None:
    sizes = {"groups": 2, "queries": 10, "channels": 32, "heads": 4}
    rows = run("attention", kinds=("self",), rounds=1, lwdetr=lwdetr, **sizes)
    assert next(iter(rows)) == "self-attention, LW-DETR"
    assert rows["self-attention, ours"]["error"] < 1e-5


def test_deformable_attention_is_grid_sample(run: Run) -> None:
    rows = run("deformable", rounds=1, groups=1, images=1)
    assert sum(name.endswith("PyTorch") for name in rows) == 2
    assert max(row["error"] for row in rows.values()) < 1e-4


def test_growth_in_the_criterion(run: Run, tmp_path: Path) -> None:
    page = tmp_path / "growth.html"
    rows = run("growth", curves=("objects",), objects=(1, 5), most=2, rounds=1, page=page)
    few, many = (rows[f"Objects, in the criterion {count}"] for count in (1, 5))
    # The memory of the usual form grows with the square of the objects, ours linearly.
    usual = many["usual form, MiB"] / few["usual form, MiB"]
    ours = many["ours, MiB"] / few["ours, MiB"]
    assert ours < usual
    assert "Objects, in the criterion" in page.read_text(encoding="utf-8")


@pytest.mark.slow
def test_growth_of_everything_else(run: Run) -> None:
    rows = run(
        "growth",
        curves=("groups", "queries", "sides", "classes", "dataset"),
        model="conditional-detr-tiny",
        side=64,
        most=2,
        groups=(1, 2),
        queries=(5, 10),
        sides=(64, 96),
        classes=(5, 10),
        images=(10, 50),
        rounds=1,
    )
    assert len(rows) == 10
    assert all(value > 0 for row in rows.values() for name, value in row.items() if ", s" in name)


@pytest.mark.slow
def test_masks(run: Run) -> None:
    rows = run("masks", model="mask2former-tiny", side=64, groups=2, objects=3, rounds=1)
    assert rows["K = 2, whole masks"]["kept, MiB"] > rows["K = 2"]["kept, MiB"]


@pytest.mark.slow
@pytest.mark.fair_sample
def test_a_step_of_the_authors_has_the_same_loss(run: Run, official: Path) -> None:
    rows = run("official", checkout=official, groups=(2,), side=64, queries=10, rounds=1)
    theirs, ours, in_chunks = (float(row["loss"]) for row in rows.values())
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert in_chunks == pytest.approx(theirs, rel=1e-5)


@pytest.mark.slow
def test_a_step_of_rfdetr_has_the_same_loss(run: Run, rfdetr: Path) -> None:
    sizes = {"groups": 2, "queries": 20, "side": 128, "objects": 3, "many_objects": 5, "rounds": 1}
    rows = run("rf_detr", packages=rfdetr, **sizes)
    for groups in (1, 2):
        theirs = float(rows[f"K = {groups}, rfdetr"]["loss"])
        assert float(rows[f"K = {groups}, ours"]["loss"]) == pytest.approx(theirs, rel=1e-4)
    assert {"inference, rfdetr", "inference, ours", "inference, transformers"} <= set(rows)


@pytest.mark.slow
@pytest.mark.fair_sample
def test_exported_detectors_have_the_scores_of_pytorch(run: Run) -> None:
    rows = run("export", model="conditional-detr-tiny", side=64, formats=("onnx",), rounds=1)
    assert list(rows) == ["PyTorch", "onnx"]
    assert rows["onnx"]["error"] < 1e-4
    assert rows["onnx"]["file, MB"] > 1


@pytest.mark.slow
def test_inference_beside_transformers(run: Run) -> None:
    rows = run("predict", height=64, width=96, rounds=1)
    assert list(rows)[:3] == ["transformers", "ours", "ours, bf16"]
    assert len(rows) == 6


@pytest.mark.slow
def test_images_of_a_folder_beside_a_network_that_waits(run: Run) -> None:
    rows = run("folder", images=3, rounds=1, network_ms=1)
    assert list(rows) == ["ours"]
    assert rows["ours"]["images a second"] > 0


def test_ultralytics_prepares_images_of_the_size_of_ours(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    class RTDETR:
        predictor = SimpleNamespace(inference=None)

        def __init__(self, _: str) -> None: ...

        def predict(self, _: Path, *, imgsz: int = 640, **__: Any) -> list[Any]:
            sizes.append(imgsz)
            return []

    monkeypatch.setitem(sys.modules, "ultralytics", SimpleNamespace(RTDETR=RTDETR))
    folder = import_module("folder")
    folder.load_ultralytics(folder.Options())
    assert sizes == [folder.SIDE]


@pytest.mark.slow
def test_commands_without_a_network_start_before_torch(run: Run) -> None:
    rows = run("startup", rounds=1)
    assert rows["groupdetr presets"]["of torch"] < 1
    assert rows["groupdetr predict --help"]["of torch"] < 1


def test_all_evaluators_have_the_metrics_of_pycocotools(run: Run) -> None:
    rows = run("evaluation", images=12, detections=40, rounds=1)
    errors = [row["error"] for row in rows.values() if "error" in row]
    assert len(errors) >= 2
    assert max(errors) < 1e-9


def test_a_check_reads_every_image(run: Run) -> None:
    rows = run("check", images=8, side=640, rounds=1)
    assert rows["check, headers only"]["image, ms"] < rows["check"]["image, ms"]


@pytest.mark.slow
def test_a_step_of_two_processes(run: Run) -> None:
    rows = run("ranks", side=64, batch=1, groups=2, steps=2, warm_up=1)
    assert list(rows) == ["1 process", "2 processes"]
    assert rows["1 process"]["scaling"] == 1


@pytest.mark.slow
def test_reading_of_annotations(tmp_path: Path) -> None:
    out = tmp_path / "loading.json"
    command = [sys.executable, str(BENCHMARKS / "loading.py"), "compare", "--images", "20"]
    subprocess.run([*command, "--rounds", "1", "--out", str(out)], check=True)
    rows = json.loads(out.read_text(encoding="utf-8"))["results"]
    assert list(rows) == ["pycocotools", "groupdetr", "groupdetr, from the cache"]
    assert all(row["CPU, s"] > 0 for row in rows.values())


@pytest.mark.slow
def test_loading_of_images_has_the_pixels_of_the_usual_form(run: Run, real_data: Path) -> None:
    rows = run("data", data=real_data / "bccd", images=4, rounds=1, workers=1, imgsz=200)
    assert rows["decode and augment, ours"]["difference"] <= 2
    assert "loader, ours" in rows
