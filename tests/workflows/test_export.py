"""`groupdetr export`: its options, its files, and the comparison with PyTorch."""

from __future__ import annotations

import importlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from groupdetr.cli.main import main
from groupdetr.data.nuscenes.names import CLASSES
from groupdetr.deployment import runtimes
from groupdetr.deployment.exported_detector import ExportedDetector
from groupdetr.deployment.exported_scene_detector import ExportedSceneDetector
from groupdetr.deployment.graph import DetectionGraph
from groupdetr.deployment.runtimes import FORMATS
from groupdetr.errors import ExportMismatchError, UsageError
from groupdetr.experiments.by_name import EXPERIMENTS
from groupdetr.files.writing import WriteError
from groupdetr.workflows import export as workflow
from groupdetr.workflows.export import export
from tests.deployment import exports
from tests.deployment.exports import CATEGORIES, SMALL, write_weights
from tests.json_docs import assert_documented
from tests.runs import IMAGE_PRESETS

Captured = pytest.CaptureFixture[str]
# Sizes of the presets that are exported in a slow test, so that an export takes half a minute.
QUICK = {"num_groups": 2, "decoder_layers": 2}
LITE_PRESETS = [name for name in EXPERIMENTS if name.endswith("-lite")]


@pytest.fixture(scope="session")
def data(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The synthetic dataset with the categories of the detector."""
    folder = tmp_path_factory.mktemp("data") / "data"
    shutil.copytree(shapes, folder)
    for file in (folder / "annotations").iterdir():
        content = json.loads(file.read_text())
        new_ids = {}
        for category, (new_id, name) in zip(content["categories"], CATEGORIES):
            new_ids[category["id"]] = new_id
            category.update(id=new_id, name=name)
        for annotation in content["annotations"]:
            annotation["category_id"] = new_ids[annotation["category_id"]]
        file.write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights") / "small.safetensors", **SMALL)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_json_output_has_the_figures_of_the_comparison(
    weights: Path, data: Path, tmp_path: Path, capsys: Captured
) -> None:
    out = tmp_path / "new folder/small.pt2"
    arguments = ["export", str(weights), "--format", "torch-export", "--out", str(out)]
    assert main([*arguments, "--size", "64", "64", "--check", str(data), "--json"]) == 0
    output = capsys.readouterr()
    result = json.loads(output.out)
    assert_documented("export", result)
    assert result["file"] == str(out)
    assert files(out.parent) == ["small.pt2"]
    assert result["agreement"]["detections"] > 0
    assert result["AP"]["exported"] == pytest.approx(result["AP"]["torch"], abs=5e-4)
    assert "writing small.pt2" in output.err


def test_a_file_that_does_not_agree_ends_with_exit_code_5_and_the_figures(
    weights: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_graph = workflow.create_graph

    def create_other_graph(*arguments: Any) -> DetectionGraph:
        graph = create_graph(*arguments)
        with torch.no_grad():
            graph.mean += 3.0  # of 255
        return graph

    monkeypatch.setattr(workflow, "create_graph", create_other_graph)
    out = tmp_path / "other.pt2"
    arguments = ["export", str(weights), "--format", "torch-export", "--out", str(out)]
    assert main([*arguments, "--size", "64", "64", "--json"]) == 5
    output = capsys.readouterr()
    assert output.out == ""
    assert "does not agree with PyTorch" in output.err
    assert "largest difference of scores" in output.err
    assert str(out) in output.err


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_file_that_cannot_be_written_leaves_the_former_one_and_no_draft(
    failure: BaseException, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_graph: Any, _options: Any, _metadata: Any, file: Path) -> None:
        file.write_text("a part of it")
        file.with_suffix(".bin").write_text("a part of it")
        raise failure

    monkeypatch.setitem(FORMATS, "openvino", replace(FORMATS["openvino"], write=fail))
    former = tmp_path / "small.xml"
    former.write_text('<net groupdetr="{&quot;outputs&quot;: []}"/>')
    expected = WriteError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        export(weights, "openvino", former)
    assert files(tmp_path) == ["small.xml"]
    assert former.read_text().startswith("<net")


def test_weights_that_are_too_large_for_a_file_of_onnx_are_written_beside_it(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as limits:
        limits.setattr(runtimes, "_MAX_ONNX_BYTES", 0)
        # The comparison with PyTorch opens both.
        result = export(weights, "onnx", tmp_path / "small.onnx", size=(64, 64))
    assert files(tmp_path) == ["small.onnx", "small.onnx.data"]
    assert (tmp_path / "small.onnx.data").stat().st_size > 0.9 * weights.stat().st_size / 2
    assert "its weights are in small.onnx.data, which has to stay beside it" in result.lines()

    # If the next file has room for its weights, those of the former one are removed.
    def write(_graph: Any, _options: Any, _metadata: Any, file: Path) -> None:
        file.write_text("a graph and its weights")

    workflow._write(replace(FORMATS["onnx"], write=write), *(None,) * 3, result.file)
    assert files(tmp_path) == ["small.onnx"]


def test_files_of_others_are_not_replaced(weights: Path, tmp_path: Path) -> None:
    for name in ("other.onnx", "weights.bin"):
        (tmp_path / name).write_bytes(b"of another program")
    for format, out in (("onnx", "other.onnx"), ("openvino", "weights.xml")):
        with pytest.raises(UsageError, match="did not write it"):
            export(weights, format, tmp_path / out)
    assert files(tmp_path) == ["other.onnx", "weights.bin"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "tflite"}, "there is no format 'tflite'"),
        ({"out": "model.pt"}, "a file of this format ends in .onnx"),
        ({"top": 0}, "top must be"),
        ({"opset": 9}, "opset must be"),
        ({"format": "torch-export", "opset": 20}, "only ONNX has versions of operators"),
        ({"size": (64, 16)}, "size must be"),
        ({"size": (64, 64), "imgsz": 64}, "two ways to choose the size"),
    ],
)
def test_options_that_cannot_be_used_are_refused_before_the_export(
    options: dict[str, Any], message: str, weights: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        export(weights, **options)
    assert files(weights.parent) == ["small.safetensors"]


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_a_runtime_that_is_not_installed_is_named_with_the_extra_that_installs_it(
    format: Any, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def import_module(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(importlib, "import_module", import_module)
    with pytest.raises(UsageError) as error:
        export(weights, format, tmp_path / f"small{FORMATS[format].ending}")
    assert error.value.remedy == f"pip install 'groupdetr[{format}]'"


def test_what_cannot_be_exported_is_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "CATEGORIES", [list(item) for item in enumerate(CLASSES)])
    scenes = write_weights(tmp_path / "scenes.safetensors", "petr-tiny", num_classes=10)
    with pytest.raises(UsageError, match="scenes cannot compute in 16 bits"):
        export(scenes, "torch-export", half=True)
    vit = write_weights(tmp_path / "vit.safetensors", "dino-vit-tiny")
    with pytest.raises(UsageError, match="windows is fixed") as error:
        export(vit, "torch-export")
    assert "--size" in error.value.remedy


def test_a_detector_of_squares_is_exported_for_squares_of_its_size(tmp_path: Path) -> None:
    """Sides that its windows do not divide are refused, and not padded."""
    small = {"num_groups": 2, "decoder_layers": 1, "num_queries": 8}
    small |= {"vit_depth": 2, "global_blocks": (1,), "map_blocks": (0, 1)}
    weights = write_weights(tmp_path / "squares.safetensors", "rf-detr-micro", **small)
    for size, remedy in (((64, 72), "write 64 or 80 instead of 72"), ((40, 64), "write 32 or 48")):
        with pytest.raises(UsageError, match="must be a multiple of 16") as error:
            export(weights, "torch-export", size=size)
        assert remedy in error.value.remedy
    result = export(weights, "torch-export", imgsz=72)
    metadata = ExportedDetector.load(result.file).metadata
    assert (metadata["imgsz"], metadata["size"]) == (72, [80, 80])
    assert result.agreement.detections > 0


def test_a_comparison_finds_a_detector_that_detects_other_objects(weights: Path) -> None:
    agreement = workflow.Agreement(8, 0, 100, 1e-5, 0.6, None, 1.0, 1.0)
    assert not agreement.is_within(workflow.TOLERANCE)
    assert agreement.is_within(workflow.TOLERANCE_HALF)
    assert not replace(agreement, unstable=5).is_within(workflow.TOLERANCE_HALF)
    result = workflow.ExportResult(weights, agreement, None)
    with pytest.raises(ExportMismatchError, match=r"of boxes 0\.60 pixels"):
        workflow._expect_agreement(result, workflow.TOLERANCE)
    of_masks = replace(result, agreement=replace(agreement, pixels=None, mask=0.02))
    with pytest.raises(ExportMismatchError, match=r"of masks 2\.00 % of their pixels"):
        workflow._expect_agreement(of_masks, workflow.TOLERANCE)
    of_scenes = replace(result, agreement=replace(agreement, pixels=None, box3d=0.02))
    with pytest.raises(ExportMismatchError, match=r"of boxes 0\.0200 \(metres"):
        workflow._expect_agreement(of_scenes, workflow.TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["petr-tiny", "petrv2-tiny"])
def test_every_detector_of_scenes_is_exported_to_onnx_and_agrees(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "CATEGORIES", [list(item) for item in enumerate(CLASSES)])
    weights = write_weights(tmp_path / "weights.safetensors", preset, num_classes=10, **QUICK)
    result = export(weights, "onnx", dynamic_batch=True)
    assert result.agreement.detections > 0
    assert result.agreement.box3d is not None
    metadata = ExportedSceneDetector.load(result.file).metadata
    assert metadata["inputs"] == ["images", "image_to_lidar", "elapsed"][: 2 + ("v2" in preset)]


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["rf-detr-nano", "lw-detr-large"])
def test_positions_are_interpolated_in_an_export_of_another_size(
    preset: str, tmp_path: Path
) -> None:
    """A narrow RF-DETR-nano at 128 instead of 384 pixels, and LW-DETR with two levels."""
    narrow = {"channels": 32, "num_heads": 2, "cross_attention_heads": 4, "dim_feedforward": 32}
    narrow |= {"vit_width": 24, "vit_heads": 2, "num_queries": 20}
    weights = write_weights(tmp_path / "weights.safetensors", preset, **QUICK, **narrow)
    result = export(weights, "onnx", size=(128, 128))
    assert result.agreement.detections > 0


@pytest.mark.slow
@pytest.mark.parametrize("preset", [*IMAGE_PRESETS, *LITE_PRESETS])
def test_every_detector_is_exported_to_onnx_and_agrees(preset: str, tmp_path: Path) -> None:
    """`export` itself raises an error if it does not agree."""
    weights = write_weights(tmp_path / "weights.safetensors", preset, **QUICK)
    size = (96, 128) if "vit" in preset else None
    result = export(weights, "onnx", size=size, dynamic_batch=size is None)
    assert result.agreement.detections > 0
    assert ExportedDetector.load(result.file).metadata["model"] == preset
