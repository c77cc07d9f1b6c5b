"""An argument names a run or a weights file; the error for any other says what to pass."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from groupdetr.checkpoints import native
from groupdetr.checkpoints.file_format import KEY, file_stamp
from groupdetr.errors import UsageError, WeightsError
from groupdetr.tasks.run_or_weights import default_file, default_folder, expect_run, weights_of

STATE = {"a": torch.ones(2)}


@pytest.fixture(autouse=True)
def _in_folder_with_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder has a run with weights, and one whose first evaluation has not been."""
    for name in ("done", "begun"):
        (tmp_path / f"runs/{name}/weights").mkdir(parents=True)
        (tmp_path / f"runs/{name}/val").mkdir()
        (tmp_path / f"runs/{name}/config.yaml").touch()
    save_file(STATE, tmp_path / "runs/done/weights/best.safetensors")
    content = {KEY: file_stamp(), "model": STATE}
    torch.save(content, tmp_path / "runs/done/weights/last.pt")
    (tmp_path / "runs/done/val/metrics.json").write_text("{}")
    monkeypatch.chdir(tmp_path)


def test_a_run_and_its_weights_are_found() -> None:
    best = Path("runs/done/weights/best.safetensors")
    assert weights_of("runs/done") == best
    assert weights_of(best) == best
    expect_run(Path("runs/done"))


def create_files() -> None:
    """Create files and folders that are no runs."""
    Image.new("RGB", (8, 8)).save("photo.jpg")
    Path("notes.txt").write_text("some notes\n")
    torch.save({"model": STATE}, "official.pth")
    for name in ("photos/a.jpg", "coco/train.json", "hub/config.json", "empty/x/y"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    Path("export").mkdir()
    save_file(STATE, "export/model.safetensors")


@pytest.mark.parametrize(
    ("argument", "what", "remedy"),
    [
        ("runs/begun", "no weights yet", "groupdetr train --resume runs/begun"),
        ("runs/dune", "no such run", "did you mean runs/done?"),
        ("nowhere", "no such run", "the runs here are runs/begun, runs/done"),
        ("dino-tiny", "the name of a model", "groupdetr train DATA --model dino-tiny"),
        ("https://example.org/a.pth", "(URL)", "download the file"),
        ("runs", "not the folder of a run", "one of the runs in it: runs/begun, runs/done"),
        ("runs/done/val", "a folder inside of one", "pass the run: runs/done"),
        ("runs/done/val/metrics.json", "a JSON file", "pass the run: runs/done"),
        ("runs/done/weights/last.pt", "the state of a training", "pass the run: runs/done"),
        ("photo.jpg", "an image", "groupdetr predict RUN IMAGES"),
        ("photos", "not the folder of a run", "groupdetr predict RUN IMAGES"),
        ("notes.txt", "a text file", "pass a file of weights"),
        ("coco", "not the folder of a run", "groupdetr train coco"),
        ("hub", "not the folder of a run", "groupdetr import hub"),
        ("export", "not the folder of a run", "pass the file in it: export/model.safetensors"),
        ("empty", "not the folder of a run", "that `groupdetr train` wrote"),
        ("a" * 5000, "no such run", "the runs here"),
        ("\0", "no such run", "the runs here"),
    ],
)
def test_the_error_for_any_other_argument_says_what_it_is(
    argument: str, what: str, remedy: str
) -> None:
    create_files()
    with pytest.raises(UsageError) as refused:
        weights_of(argument)
    assert what in refused.value.what
    assert remedy in refused.value.remedy
    assert refused.value.where == argument


def test_the_error_for_a_checkpoint_of_no_known_detector_names_its_tensors() -> None:
    create_files()
    with pytest.raises(WeightsError, match=r"no known layout .* has these names: a"):
        weights_of("official.pth")


@pytest.mark.parametrize(
    ("argument", "what", "remedy"),
    [
        ("nowhere", "no such run", "the runs here are runs/begun, runs/done"),
        ("runs/done/weights", "a folder inside of one", "pass the run: runs/done"),
        ("runs/done/weights/best.safetensors", "a file inside of one", "pass the run: runs/done"),
        ("photo.jpg", "this is an image", "its --out"),
        ("official.pth", "this is a file", "its --out"),
    ],
)
def test_the_error_for_what_cannot_be_resumed_says_what_it_is(
    argument: str, what: str, remedy: str
) -> None:
    create_files()
    with pytest.raises(UsageError) as refused:
        expect_run(Path(argument))
    assert what in refused.value.what
    assert remedy in refused.value.remedy


def test_a_folder_with_a_model_of_this_library_is_one_only_with_its_configuration() -> None:
    """`groupdetr push` writes both. Otherwise the file has to be named."""
    metadata = {"recipe": {}, "categories": [], "imgsz": 64}
    Path("pushed").mkdir()
    native.save(torch.nn.Linear(1, 1), "pushed/model.safetensors", metadata)
    with pytest.raises(UsageError) as refused:
        weights_of("pushed")
    assert "pass the file in it: pushed/model.safetensors" in refused.value.remedy
    Path("pushed/config.json").write_text("{}")
    assert weights_of("pushed") == Path("pushed/model.safetensors")


def test_results_are_written_to_the_run_beside_a_file_or_to_a_folder_of_a_models_name() -> None:
    assert default_folder(Path("runs/done")) == Path("runs/done")
    assert default_folder(Path("runs/done/weights/best.safetensors")) == Path("runs/done/weights")
    assert default_folder(Path("user/name")) == Path("runs/user--name")
    assert default_folder(Path("user/name@v1")) == Path("runs/user--name--v1")


def test_files_of_converted_weights_are_beside_the_checkpoint_and_not_in_the_cache() -> None:
    create_files()
    converted, best = Path("cache/model.safetensors"), Path("runs/done/weights/best.safetensors")
    assert default_file(Path("official.pth"), converted) == Path("official.pth")
    assert default_file(Path("export"), converted) == Path("export/model.safetensors")
    assert default_file(Path("runs/done"), best) == best
    assert default_file(best, best) == best
    expected = Path("runs/owner--name--main/model.safetensors")
    assert default_file(Path("owner/name@main"), converted) == expected


def test_a_mistyped_run_is_told_how_a_model_on_the_hub_would_be_named() -> None:
    with pytest.raises(UsageError) as refused:
        weights_of("runs/dune")
    assert refused.value.remedy.endswith("a model on the Hugging Face hub is runs/dune@main")


def test_damaged_weights_inside_of_a_run_lead_to_the_run() -> None:
    path = Path("runs/done/weights/last.pt")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UsageError, match="its end is missing") as refused:
        weights_of(path)
    assert refused.value.remedy.startswith("pass the run: runs/done")
    Path("code.pth").write_bytes(b"\x80\x02cos\nsystem\n.")
    with pytest.raises(WeightsError, match=r"os\.system"):
        weights_of("code.pth")
