"""Every command on images: options, output, files, exit codes and errors."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import groupdetr
from groupdetr import registry
from groupdetr.cli.main import COMMANDS, main
from groupdetr.cli.options.import_weights import ImportOptions
from groupdetr.data import freed_memory
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.paper import parallel_runs, small_scale
from groupdetr.workflows.task_workflows import WORKFLOWS
from tests.json_docs import assert_documented
from tests.runs import train, train_arguments, train_here


@pytest.fixture(scope="module")
def run(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs with two groups."""
    return train(shapes, tmp_path_factory.mktemp("runs") / "run", "--epochs", "2")


def read_train_annotations(data: Path) -> dict[str, Any]:
    """Return the content of the training annotations."""
    return json.loads((data / "annotations/instances_train.json").read_text())


def required_arguments(command: str, run: Path, data: Path) -> list[str]:
    """Return the positional arguments that a command cannot do without."""
    arguments = {
        "check": [str(data)],
        "train": [str(data)],
        "val": [str(run)],
        "predict": [str(run), str(data / "images/val")],
        "demo": [],
    }
    return arguments[command]


# the command line

HELP_PROGRAM = """
import sys
from groupdetr.cli.main import COMMANDS, main
for arguments in (
    *([command, "--help"] for command in COMMANDS),
    ["--help"],
    ["presets"],
    ["train", "data", "--model", "dino-tinny"],
    ["train", "data", "--epocs", "3"],
):
    try:
        main(arguments)
    except SystemExit:
        pass
    assert "torch" not in sys.modules, f"{arguments} imported torch"
"""


def test_nobody_waits_for_torch_to_be_told_what_there_is() -> None:
    program = [sys.executable, "-c", HELP_PROGRAM]
    process = subprocess.run(program, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    for command in COMMANDS:
        assert f"groupdetr {command} " in process.stdout
    # The help is made of docstrings. A comment beside a field without one would be shown.
    assert "type: ignore" not in process.stdout


@pytest.mark.parametrize("arguments", [[], ["--help"]], ids=["no argument", "--help"])
def test_all_verbs_are_listed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    listed = {words[0] for words in lines if words}
    assert set(COMMANDS) <= listed


def test_an_unknown_option_is_an_error_with_the_nearest_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["train", "data", "--grops", "3"])
    assert raised.value.code == 2
    output = capsys.readouterr()
    assert "--groups" in output.out + output.err


@pytest.mark.parametrize(
    ("arguments", "nearest"),
    [
        pytest.param(["trian"], "train", id="command"),
        pytest.param(
            ["train", "DATA", "--model", "conditional-detr-tiny", "--set", "droput=0"],
            "dropout",
            id="field of the recipe",
        ),
    ],
)
def test_an_unknown_name_is_an_error_with_the_nearest_name(
    arguments: list[str], nearest: str, shapes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(shapes) if argument == "DATA" else argument for argument in arguments]
    assert main(arguments) == 2
    assert nearest in capsys.readouterr().err


def test_group_detr_is_an_alias_of_groups(shapes: Path, tmp_path: Path) -> None:
    run = train(shapes, tmp_path / "run", "--steps", "1", "--group-detr", "3")
    assert groupdetr.Detector(run).recipe.num_groups == 3


# check


def test_check_ends_with_0_for_good_data_and_with_3_for_data_that_training_refuses(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(shapes), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["verdict"] == "ok"
    assert report["images"] == 24

    content = read_train_annotations(shapes)
    content["annotations"][0]["bbox"][2] = float("nan")
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps(content))
    data = [str(broken), "--images", str(shapes / "images/train")]
    assert main(["check", *data, "--json"]) == 3
    (error,) = json.loads(capsys.readouterr().out)["errors"]
    assert set(error) == {"code", "file", "record", "what", "remedy"}

    out = tmp_path / "run"
    assert main(["train", *data, "--model", "conditional-detr-tiny", "--out", str(out)]) == 3
    assert not out.exists()


# val


def test_val_writes_metrics_classes_groups_and_coco_results(
    run: Path, tmp_path: Path, shapes: Path
) -> None:
    assert main(["val", str(run), "--per-group", "--workers", "0", "--out", str(tmp_path)]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert len(metrics["per_group"]) == 2
    assert metrics["per_group"][0]["AP"] == metrics["AP"], "inference runs the primary group"
    assert len((tmp_path / "per_class.csv").read_text().splitlines()) == 1 + 3
    results = json.loads((tmp_path / "predictions.json").read_text())
    assert set(results[0]) == {"image_id", "category_id", "bbox", "score"}
    ground_truth = json.loads((shapes / "annotations/instances_val.json").read_text())
    category_ids = {category["id"] for category in ground_truth["categories"]}
    assert {result["category_id"] for result in results} <= category_ids


def test_val_on_data_with_other_classes_is_refused(run: Path, shapes: Path, tmp_path: Path) -> None:
    content = read_train_annotations(shapes)
    for category in content["categories"]:
        category["name"] = f"another {category['name']}"
    other = tmp_path / "other.json"
    other.write_text(json.dumps(content))
    data = ["--data", str(other), "--images", str(shapes / "images/train")]
    assert main(["val", str(run), *data]) == 2


def test_val_on_data_with_fewer_classes_evaluates_these(
    run: Path, shapes: Path, tmp_path: Path
) -> None:
    """The order of the classes may be another one too."""
    content = read_train_annotations(shapes)
    content["categories"] = list(reversed(content["categories"][1:]))
    category_ids = {category["id"] for category in content["categories"]}
    content["annotations"] = [
        annotation
        for annotation in content["annotations"]
        if annotation["category_id"] in category_ids
    ]
    fewer = tmp_path / "fewer.json"
    fewer.write_text(json.dumps(content))
    data = ["--data", str(fewer), "--images", str(shapes / "images/train")]
    assert main(["val", str(run), *data, "--workers", "0", "--out", str(tmp_path)]) == 0
    assert len((tmp_path / "per_class.csv").read_text().splitlines()) == 1 + 2


# predict


def test_predict_takes_files_folders_and_globs_of_any_kind_of_image(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    (images / "subfolder").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 4), dtype=np.uint8)
    Image.fromarray(noise).save(images / "rgba.png")
    Image.fromarray(noise[..., 0]).save(images / "image.jpg")
    Image.fromarray(noise[..., :3]).save(images / "subfolder" / "image.jpg")
    out = tmp_path / "out"
    inputs = [str(images), str(images / "*.png")]
    assert main(["predict", str(run), *inputs, "--score", "0", "--out", str(out), "--json"]) == 0
    predictions = json.loads(capsys.readouterr().out)
    annotated = [image["annotated"] for image in predictions]
    assert len(set(annotated)) == len(annotated) == 4, "no image overwrites another"
    assert all(Image.open(out / name).size == (60, 40) for name in annotated)
    assert predictions == json.loads((out / "predictions.json").read_text())
    names = {detection["name"] for image in predictions for detection in image["detections"]}
    assert names <= {"circle", "square", "triangle"}


def test_predict_leaves_out_what_a_system_wrote_and_says_so(
    run: Path, tmp_path: Path, shapes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    (photos / "__MACOSX").mkdir(parents=True)
    image = Image.open(min((shapes / "images/val").iterdir()))
    for name in ("a.jfif", "b.tga", "c.pgm", "d.dib", "e.jpe"):
        image.convert("L" if name == "c.pgm" else "RGB").save(photos / name)
    for name in ("._a.jpg", ".DS_Store", "Thumbs.db", "__MACOSX/._a.jpg", "notes.txt"):
        (photos / name).write_bytes(b"\x00\x05\x16\x07")
    out = tmp_path / "out"
    arguments = ["predict", str(run), "--out", str(out), "--score", "0"]
    assert main([*arguments, str(photos)]) == 0
    line = "left out: 1 file without the ending of an image (.txt), 3 files that the system wrote"
    assert line in capsys.readouterr().out
    assert len(json.loads((out / "predictions.json").read_text())) == 5
    # A shell expands photos/* to all files that are not hidden.
    named = [str(photos / name) for name in ("a.jfif", "Thumbs.db")]
    assert main([*arguments, *named]) == 0
    assert "left out: 1 file that the system wrote" in capsys.readouterr().out
    assert main([*arguments, str(photos / "Thumbs.db")]) == 2
    assert "no images were found (left out: 1 file" in capsys.readouterr().err


def test_the_detector_takes_paths_images_arrays_and_tensors(run: Path, shapes: Path) -> None:
    detector = groupdetr.Detector(run)
    path = sorted((shapes / "images/val").iterdir())[0]
    image = Image.open(path)
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    inputs: list[Any] = [path, str(path), image, array, tensor, tensor / 255]
    first, *others = detector.predict(inputs, score=0)
    for result in others:
        np.testing.assert_allclose(result.boxes, first.boxes)
        np.testing.assert_allclose(result.scores, first.scores)


def test_results_convert_to_supervision_and_coco(run: Path, shapes: Path) -> None:
    path = sorted((shapes / "images/val").iterdir())[0]
    (result,) = groupdetr.Detector(run).predict(path, score=0)
    detections = result.to_supervision()
    assert len(detections) == len(result)
    assert list(detections.data["class_name"]) == result.names
    rows = result.to_coco(image_id=7)
    assert rows[0]["image_id"] == 7
    x0, y0, x1, y1 = result.boxes[0]
    assert rows[0]["bbox"] == pytest.approx([x0, y0, x1 - x0, y1 - y0], abs=1e-4)


# invalid options


@pytest.mark.parametrize("command", ["train", "val", "predict", "check"])
def test_an_output_folder_that_cannot_be_created_is_an_error_before_any_computation(
    command: str,
    run: Path,
    shapes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(DetectionTransformer, "forward", lambda *_: pytest.fail("the model ran"))
    file = tmp_path / "file"
    file.write_text("")
    if command == "train":
        arguments = train_arguments(shapes, file)
    else:
        out = file / "subfolder" if command == "val" else file
        arguments = [command, *required_arguments(command, run, shapes), "--out", str(out)]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert f"where: {file}" in error
    assert "--out" in error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError("broken stream"), "broken stream"),
        (MemoryError("12 GiB"), "there is not enough memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), "there is not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate"), "there is not enough memory"),
    ],
)
def test_an_error_of_the_system_is_a_message(
    error: Exception,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Such an error has no file, for example if the output goes to a disk that is full."""

    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr("groupdetr.cli.main.load", lambda name: lambda **_: fail(name))
    monkeypatch.setattr("groupdetr.cli.main.read_options", lambda *_: ImportOptions(Path("a")))
    assert main(["import", "a"]) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert reason in message


@pytest.mark.parametrize("arguments", [["val", ""], ["check", "data", "--out="], ["presets", " "]])
def test_an_empty_argument_is_an_error_and_not_the_current_folder(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: an argument is empty")
    assert f"after {'--out' if '--out=' in arguments else arguments[0]}" in message


def test_commands_that_run_a_network_many_times_keep_freed_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training calls it itself, on a CPU only."""
    calls: list[str] = []
    for command in ("predict", "val", "groups", "ui", "export", "train"):
        monkeypatch.setattr(freed_memory, "keep_freed_memory", partial(calls.append, command))
        assert main([command, str(tmp_path / "missing")]) != 0
    assert calls == ["predict", "val", "groups", "ui"]


def test_only_a_training_runs_in_several_processes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["val", "runs/mine"]) == 2
    message = capsys.readouterr().err
    assert "groupdetr val runs in one process, and a launcher started 2" in message
    assert "start it without torchrun: groupdetr val" in message


def test_a_run_that_does_not_exist_is_an_error_about_its_path(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(tmp_path / "no-run")
    for arguments in (["val", run], ["predict", run, "a.jpg"]):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert "there is no such run or weights file" in error
        assert run in error


@pytest.mark.parametrize(
    ("command", "device"), [("train", "cuda"), ("val", "tpu"), ("predict", "cuda")]
)
def test_a_device_that_the_machine_does_not_have_is_an_error(
    command: str,
    device: str,
    run: Path,
    shapes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    arguments = required_arguments(command, run, shapes)
    assert main([command, *arguments, "--out", str(tmp_path / "out"), "--device", device]) == 2
    assert f"this machine has no device {device!r}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "option", "value"),
    [
        ("train", "--queries", "0"),
        ("val", "--imgsz", "0"),
        ("val", "--batch", "0"),
        ("predict", "--imgsz", "0"),
        ("predict", "--score", "nan"),
        ("predict", "--score", "2"),
        ("demo", "--epochs", "0"),
        ("demo", "--groups", "0"),
        ("demo", "--seeds", "0"),
        ("demo", "--at-once", "0"),
    ],
)
def test_a_number_out_of_range_is_an_error_and_not_replaced_by_a_default(
    command: str,
    option: str,
    value: str,
    run: Path,
    shapes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    arguments = required_arguments(command, run, shapes)
    assert main([command, *arguments, "--out", str(out), option, value]) == 2
    name = option.strip("-").replace("-", "_")
    assert name in capsys.readouterr().err.replace("-", "_")
    assert not out.exists()


# doctor, presets, and weights of a run


def test_doctor_measures_isolated_groups_and_finds_a_leak(
    capsys: pytest.CaptureFixture[str], run: Path
) -> None:
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["holds"]
    assert main(["doctor", "--model", str(run)]) == 0
    assert main(["doctor", "--model", "table7/c-tiny"]) == 1


def test_weights_of_a_run_initialise_another_with_other_classes_and_groups(
    run: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = read_train_annotations(shapes)
    for category in content["categories"]:
        if category["id"] != 1:
            category["name"] += "s"
    other = tmp_path / "other.json"
    other.write_text(json.dumps(content))
    options = ["--images", str(shapes / "images/train")]
    options += ["--weights", str(run / "weights/best.safetensors")]
    train(other, tmp_path / "run", *options, "--steps", "1", "--groups", "4")
    assert "class" in capsys.readouterr().out


# the page of a run


class LinkCollector(HTMLParser):
    """Collects everything that a browser would fetch for a page."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            is_fetched = name == "src" or (tag == "link" and name == "href")
            if is_fetched and value:
                self.links.append(value)


def test_the_page_of_a_run_loads_nothing_from_other_files_or_servers(run: Path) -> None:
    collector = LinkCollector()
    collector.feed((run / "report.html").read_text())
    assert collector.links
    assert all(link.startswith("data:") for link in collector.links)


def test_an_error_in_writing_the_page_says_that_the_training_is_complete(
    shapes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def report(_: object) -> Path:
        raise KeyError("size")

    monkeypatch.setitem(WORKFLOWS, "images", replace(WORKFLOWS["images"], report=report))
    run = tmp_path / "run"
    assert main(train_arguments(shapes, run, "--steps", "1")) == 1
    error = capsys.readouterr().err
    assert "the training is complete" in error
    assert str(run / "weights/best.safetensors") in error
    assert (run / "weights/best.safetensors").is_file()


# demo and paper


def shrink_drawn_data(monkeypatch: pytest.MonkeyPatch, counts: dict[str, int]) -> None:
    """Let the demo and the items of the paper use fewer drawn images."""
    monkeypatch.setattr(small_scale, "SHAPES_COUNTS", counts)


PLUGIN = """
import groupdetr
from groupdetr.detectors.tiny import TinyConditionalDETR

groupdetr.register_model("my-tiny", TinyConditionalDETR(num_groups=2))
"""


def test_the_demo_compares_one_group_with_several_and_continues_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The detector is that of a plugin, which the processes of the trainings load, too."""
    monkeypatch.setattr(registry, "_loaded_plugins", [])
    plugin = tmp_path / "my_models.py"
    plugin.write_text(PLUGIN)
    shrink_drawn_data(monkeypatch, {"train": 16, "val": 12})
    out = tmp_path / "demo"
    model = ["--plugin", str(plugin), "--model", "my-tiny"]
    arguments = ["demo", *model, "--out", str(out), "--epochs"]
    assert main([*arguments, "1"]) == 0
    results = json.loads((out / "results.json").read_text())
    assert [row["runs"][0]["groups"] for row in results["configurations"]] == [1, 1, 2]
    assert {"AP", "AP50"} <= results["configurations"][0]["runs"][0]["metrics"].keys()
    page = (out / "report.html").read_text()
    assert "at equal time" in page
    assert "detected" in page, "it has images"
    checkpoints = {path: path.stat().st_mtime for path in out.rglob("last.pt")}
    # Two rows name one training if a step with groups was not measured to be slower.
    names = {row["runs"][0]["training"] for row in results["configurations"]}
    assert len(checkpoints) == len(names) >= 2
    capsys.readouterr()
    assert main([*arguments, "1", "--json"]) == 0
    assert_documented("paper: results", json.loads(capsys.readouterr().out))
    again = {path: path.stat().st_mtime for path in out.rglob("last.pt")}
    assert again == checkpoints, "nothing was trained again"


def test_items_of_the_paper_share_their_trainings_and_are_drawn_again_from_their_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shrink_drawn_data(monkeypatch, {"train": 8, "val": 4})
    # Those of the demo above run in processes of their own.
    monkeypatch.setattr(parallel_runs, "start_process", train_here)
    out = tmp_path / "paper"
    options = ["--models", "conditional-detr-tiny", "--groups", "2", "--epochs", "1"]
    options += ["--out", str(out)]
    assert main(["paper", "table7", *options]) == 0
    results = json.loads((out / "table7/results.json").read_text())
    assert [row["reported"] for row in results["configurations"]] == [32.6, 8.4, 34.8, 37.6]
    assert "| (d) Group DETR | 2 | 1 |" in (out / "table7/table.md").read_text()
    checkpoints = {path: path.stat().st_mtime for path in out.rglob("last.pt")}
    assert len(checkpoints) == 4
    capsys.readouterr()
    # Those of rows (a) and (d) are the two of Fig. 9, and the only one of Fig. 4.
    for item in ("fig9", "fig4"):
        assert main(["paper", item, *options]) == 0
        assert (out / item / "report.html").is_file()
    assert {path: path.stat().st_mtime for path in out.rglob("last.pt")} == checkpoints
    groups = json.loads((out / "fig4/results.json").read_text())["extra"]["groups"]
    assert len(groups["0"]) == 2
    # The page of the results is that of the trainings, without images.
    page = (out / "table7/report.html").read_text()
    file = str(out / "table7/results.json")
    again = ["paper", "table7", "--redraw", file, "--out", str(tmp_path / "again")]
    capsys.readouterr()
    assert main([*again, "--json"]) == 0
    assert_documented("paper: results", json.loads(capsys.readouterr().out))
    assert (tmp_path / "again/table7/report.html").read_text() == page


def test_a_plan_prints_commands_that_train_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shrink_drawn_data(monkeypatch, {"train": 8, "val": 4})
    out = tmp_path / "paper"
    arguments = ["paper", "fig3", "--models", "conditional-detr-tiny", "--groups", "2"]
    arguments += ["--epochs", "1", "--out", str(out), "--plan"]
    capsys.readouterr()
    assert main(arguments) == 0
    (line,) = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith("groupdetr train")
    ]
    assert not (out / "trainings").exists(), "nothing is trained"
    assert main(shlex.split(line)[1:]) == 0
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [], "the training is done"
    capsys.readouterr()
    assert main([*arguments, "--seeds", "2", "--json"]) == 0
    assert_documented("paper: plan", json.loads(capsys.readouterr().out))


def test_the_list_of_the_paper_has_all_items(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["paper", "--json"]) == 0
    items = json.loads(capsys.readouterr().out)
    assert_documented("paper: items", items)
    names = [item["item"] for item in items]
    assert names[:7] == [f"table{number}" for number in range(1, 8)]
    assert {"fig1", "fig3", "fig4", "fig5", "fig7", "fig8", "fig9", "vit-h"} <= set(names)
    assert main(["paper"]) == 0
    assert "GPU hours" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options",
    [
        ["fig8", "--redraw", "nowhere.json"],
        ["fig8", "--epochs", "1", "2"],
        ["fig8", "--seeds", "0"],
        ["fig8", "--models", "dab-detr-tiny"],
        ["table7", "--models", "dab-detr-tiny", "dn-detr-tiny"],
        ["table7", "--groups", "2", "3"],
        ["table3", "--groups", "1"],
        ["table7", "--models", "conditional-detr-r50"],
        ["vit-h", "--data", "coco"],
        ["fig3", "--on", "slurm", "--slurm", "partition"],
    ],
)
def test_options_that_an_item_cannot_use_are_refused(
    options: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shrink_drawn_data(monkeypatch, {"train": 2, "val": 1})
    assert main(["paper", *options, "--out", str(tmp_path / "out")]) == 2
    assert "error:" in capsys.readouterr().err
    assert not (tmp_path / "out/trainings").exists()
