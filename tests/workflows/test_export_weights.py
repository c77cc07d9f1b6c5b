"""`groupdetr export --format transformers` and `--format official`, as a command."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from groupdetr.checkpoints.native import read
from groupdetr.cli.main import main
from groupdetr.deployment.transformers_folder import Differences
from groupdetr.errors import UsageError
from groupdetr.weights.importing import import_weights
from groupdetr.workflows import export_weights as workflow
from groupdetr.workflows.export import export
from tests.deployment.exports import CATEGORIES, SMALL, write_weights
from tests.json_docs import assert_documented

Captured = pytest.CaptureFixture[str]
# transformers does not pad images, as the backbone of the preset needs it.
LITE: dict[str, Any] = {
    "square_images": True,
    "backbone": "test_resnet",
    "offset": 0.0,
    "num_groups": 3,
    "num_queries": 6,
    "channels": 32,
}


@pytest.fixture(scope="session")
def r50(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Conditional DETR with the backbone of the authors, and three groups.

    Some of its fields are not those of the preset, and the authors' code does not have them.
    """
    file = tmp_path_factory.mktemp("weights") / "r50.safetensors"
    fields = {"num_groups": 3, "num_detections": 7, "square_images": True, "freeze_norms": False}
    return write_weights(file, "conditional-detr-r50", **{**SMALL, **fields})


@pytest.fixture(scope="session")
def lite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("weights") / "lite.safetensors"
    return write_weights(file, "conditional-detr-lite", **LITE)


def test_a_file_of_the_authors_layout_comes_back_with_all_groups(
    r50: Path, tmp_path: Path, capsys: Captured
) -> None:
    """torch.load reads it with its safe defaults, and an import gives the same tensors."""
    out, again = tmp_path / "theirs.pth", tmp_path / "again.safetensors"
    arguments = ["export", str(r50), "--format", "official", "--all-groups", "--out", str(out)]
    assert main([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert_documented("export", result)
    assert result["groups"] == 3
    content = torch.load(out, weights_only=True)
    assert len(content["model"]) == result["tensors"]
    assert content["args"]["group_detr"] == 3
    assert content["model"]["query_embed.weight"].shape == (3 * SMALL["num_queries"], 32)

    assert main(["import", str(out), "--out", str(again)]) == 0
    before, metadata = read(r50)
    after, metadata_after = read(again)
    assert after.keys() == before.keys()
    for name, value in after.items():
        assert name.endswith("num_batches_tracked") or torch.equal(value, before[name]), name
    assert metadata_after == metadata

    # The command may replace its own file, with the group that answers.
    assert main(["export", str(r50), "--format", "official", "--out", str(out)]) == 0
    assert "of one group as the authors' Conditional DETR" in capsys.readouterr().out
    rows = torch.load(out, weights_only=True)["model"]["query_embed.weight"]
    assert torch.equal(rows, before["queries.embedding"][0])


def test_a_detector_is_not_replaced_by_its_own_group(
    r50: Path, tmp_path: Path, capsys: Captured
) -> None:
    """Its file is where the export would be written by default, and has two groups more."""
    theirs = tmp_path / "theirs.pth"
    export(r50, "official", theirs, all_groups=True)
    content = theirs.read_bytes()
    assert main(["export", str(theirs), "--format", "official"]) == 2
    assert "choose another file with --out" in capsys.readouterr().err
    assert theirs.read_bytes() == content


@pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed")
def test_a_folder_of_transformers_is_compared(lite: Path, tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "lite-1.5"
    arguments = ["export", str(lite), "--format", "transformers", "--out", str(out)]
    assert main([*arguments, "--json"]) == 0
    output = capsys.readouterr()
    result = json.loads(output.out)
    assert_documented("export", result)
    assert result["differences"]["logits"] < 1e-5
    assert "Loading weights" not in output.err
    names = ["config.json", "model.safetensors", "preprocessor_config.json"]
    assert sorted(path.name for path in out.iterdir()) == names
    config = json.loads((out / "config.json").read_text())
    assert config["groupdetr"]["category_ids"] == [id for id, _ in CATEGORIES]
    # An import has a name of its own for every version of a model.
    assert main(["import", str(out)]) == 0
    _, metadata = read(tmp_path / "lite-1.5.groupdetr.safetensors")
    assert metadata["recipe"]["square_images"] is True


@pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed")
@pytest.mark.parametrize("preset", ["rf-detr-micro", "rf-detr-seg-micro"])
def test_rf_detr_of_transformers_may_have_all_groups(preset: str, tmp_path: Path) -> None:
    sizes = {"num_groups": 3, "num_queries": 6, "channels": 32, "vit_width": 24}
    file = write_weights(tmp_path / "x.safetensors", preset, **sizes)
    folder, again = tmp_path / "folder", tmp_path / "again.safetensors"
    result = export(file, "transformers", folder, all_groups=True)
    assert result.groups == 3
    assert result.differences is not None
    has_masks = preset == "rf-detr-seg-micro"
    assert (result.differences.mask_logits is not None) is has_masks
    assert any("without antialiasing" in line for line in result.notes) is has_masks
    assert json.loads((folder / "config.json").read_text())["group_detr"] == 3
    import_weights(folder, again)
    before, after = read(file), read(again)
    assert all(torch.equal(value, before[0][name]) for name, value in after[0].items())
    assert after[1] == before[1]
    # The groups of a folder are not lost where it would be replaced by the one that answers.
    with pytest.raises(UsageError, match="would be replaced"):
        export(folder, "transformers", folder)
    assert json.loads((folder / "config.json").read_text())["group_detr"] == 3


@pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed")
def test_images_with_fewer_tokens_than_queries_are_refused(tmp_path: Path) -> None:
    sizes = {"num_groups": 1, "num_queries": 80, "channels": 32, "vit_width": 24}
    file = write_weights(tmp_path / "x.safetensors", "rf-detr-micro", **sizes)
    with pytest.raises(UsageError, match="transformers cannot compute fewer than 80") as error:
        export(file, "transformers", tmp_path / "folder", imgsz=50)
    assert not (tmp_path / "folder").exists()
    assert error.value.remedy is not None
    larger = int(error.value.remedy.rpartition(" ")[2])
    export(file, "transformers", tmp_path / "folder", imgsz=larger)


def test_lw_detr_of_its_authors_says_how_many_groups_to_build(tmp_path: Path) -> None:
    sizes = {"num_groups": 2, "num_queries": 6, "vit_depth": 2, "dim_feedforward": 32}
    blocks = {"global_blocks": (1,), "map_blocks": (0, 1), "decoder_layers": 1}
    file = write_weights(tmp_path / "x.safetensors", "lw-detr-tiny", **sizes, **blocks)
    result = export(file, "official", tmp_path / "theirs.pth")
    assert any("group_detr=1; --all-groups writes all 2" in line for line in result.notes)
    export(file, "official", tmp_path / "theirs.pth", all_groups=True)
    import_weights(tmp_path / "theirs.pth", tmp_path / "again.safetensors")
    before, after = read(file), read(tmp_path / "again.safetensors")
    for name, value in after[0].items():
        assert name.endswith("num_batches_tracked") or torch.equal(value, before[0][name]), name
    assert after[1] == before[1]


def test_without_transformers_the_folder_is_written_and_not_compared(
    lite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workflow, "has_transformers", lambda: False)
    result = export(lite, "transformers", tmp_path / "folder")
    assert result.differences is None
    assert any("pip install 'groupdetr[huggingface]'" in note for note in result.notes)


@pytest.mark.parametrize("name", ["logits", "boxes", "pixels"])
def test_answers_that_differ_end_with_exit_code_5(
    name: str, lite: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = Differences(8, logits=1e-7, boxes=1e-7, mask_logits=None, pixels=1e-6, other_sizes=0)
    other = replace(same, **{name: 2e-4})
    monkeypatch.setattr(workflow, "has_transformers", lambda: True)
    monkeypatch.setattr(workflow, "compare_with_transformers", lambda *_: other)
    arguments = ["export", str(lite), "--format", "transformers", "--out", str(tmp_path / "folder")]
    assert main(arguments) == 5
    error = capsys.readouterr().err
    assert "transformers does not agree with this library" in error
    assert "2.0e-04" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "official"], "has no backbone test_resnet"),
        (["--format", "transformers", "--half"], "--half has no effect on the format transformers"),
        (["--format", "transformers", "--all-groups"], "Conditional DETR has one group"),
        (["--format", "onnx", "--all-groups"], "--all-groups has no effect on the format onnx"),
    ],
)
def test_what_cannot_be_written_is_refused(
    options: list[str], message: str, lite: Path, tmp_path: Path, capsys: Captured
) -> None:
    out = tmp_path / "out"
    assert main(["export", str(lite), *options, "--out", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_a_backbone_of_this_library_is_refused(tmp_path: Path, capsys: Captured) -> None:
    tiny = write_weights(tmp_path / "tiny.safetensors", offset=0.0, **SMALL)
    assert main(["export", str(tiny), "--format", "transformers"]) == 2
    error = capsys.readouterr().err
    assert "the backbone small_resnet is this library's own" in error
    assert "--backbone resnet50.tv_in1k" in error


def test_files_of_others_are_not_replaced(lite: Path, tmp_path: Path, capsys: Captured) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"model_type": "conditional_detr"}')
    arguments = ["export", str(lite), "--format", "transformers", "--out", str(tmp_path)]
    assert main(arguments) == 2
    assert "the command did not write it" in capsys.readouterr().err
    assert file.read_text() == '{"model_type": "conditional_detr"}'
