"""What the verbs promise to somebody who types them."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import groupdetr
from groupdetr.cli.main import VERBS, main
from groupdetr.data.synthetic import write
from groupdetr.experiments import DEMO_DATA
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.workflows import task_workflows as verbs
from tests import runs
from tests.runs import train


@pytest.fixture(scope="module")
def run(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(shapes, tmp_path_factory.mktemp("runs") / "run", "--epochs", "2")


@pytest.mark.parametrize("verb", VERBS)
def test_help_does_not_wait_for_torch(verb: str) -> None:
    program = f"import sys; from groupdetr.cli import main\ntry: main(['{verb}', '--help'])\nexcept SystemExit: pass"
    whole = f"{program}\nassert 'torch' not in sys.modules, 'torch was imported'"
    subprocess.run([sys.executable, "-c", whole], check=True, capture_output=True)


def test_an_unknown_option_is_an_error_with_the_nearest_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["train", "data", "--grops", "3"])
    assert stopped.value.code == 2
    said = capsys.readouterr()
    assert "--groups" in said.out + said.err


def test_an_unknown_verb_model_or_recipe_field_is_an_error_with_the_nearest_name(
    shapes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, near in (
        (["trian"], "train"),
        (["train", str(shapes), "--model", "conditional-detr-tinny"], "conditional-detr-tiny"),
        (
            ["train", str(shapes), "--model", "conditional-detr-tiny", "--set", "droput=0"],
            "dropout",
        ),
    ):
        assert main(arguments) == 2
        assert near in capsys.readouterr().err


def test_group_detr_is_an_alias_of_groups(shapes: Path, tmp_path: Path) -> None:
    out = train(shapes, tmp_path / "run", "--steps", "1", "--group-detr", "3")
    assert groupdetr.Detector(out).recipe.num_groups == 3


# check


def test_check_says_ok_with_code_0_and_refuses_with_code_3(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(shapes), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["verdict"] == "ok"
    assert told["images"] == 24
    content = json.loads((shapes / "annotations/instances_train.json").read_text())
    content["annotations"][0]["bbox"][2] = float("nan")
    (tmp_path / "bad.json").write_text(json.dumps(content))
    broken = [str(tmp_path / "bad.json"), "--images", str(shapes / "images/train")]
    assert main(["check", *broken, "--json"]) == 3
    (error,) = json.loads(capsys.readouterr().out)["errors"]
    assert set(error) == {"code", "file", "record", "message"}
    assert (
        main(["train", *broken, "--model", "conditional-detr-tiny", "--out", str(tmp_path / "run")])
        == 3
    )
    assert not (tmp_path / "run").exists()


# val


def test_val_writes_figures_classes_groups_and_coco_results(
    run: Path, tmp_path: Path, shapes: Path
) -> None:
    assert main(["val", str(run), "--per-group", "--workers", "0", "--out", str(tmp_path)]) == 0
    figures = json.loads((tmp_path / "metrics.json").read_text())
    assert len(figures["per_group"]) == 2
    assert (
        figures["per_group"][0]["AP"] == figures["AP"]
    )  # the primary group is the one that answers
    assert len((tmp_path / "per_class.csv").read_text().splitlines()) == 4
    results = json.loads((tmp_path / "predictions.json").read_text())
    assert set(results[0]) == {"image_id", "category_id", "bbox", "score"}
    truth = json.loads((shapes / "annotations/instances_val.json").read_text())
    assert {r["category_id"] for r in results} <= {c["id"] for c in truth["categories"]}


def test_val_of_another_data_set_of_other_classes_is_refused(
    run: Path, shapes: Path, tmp_path: Path
) -> None:
    content = json.loads((shapes / "annotations/instances_train.json").read_text())
    for category in content["categories"]:
        category["id"] += 10
    for annotation in content["annotations"]:
        annotation["category_id"] += 10
    (tmp_path / "other.json").write_text(json.dumps(content))
    arguments = ["--data", str(tmp_path / "other.json"), "--images", str(shapes / "images/train")]
    assert main(["val", str(run), *arguments]) == 2


def test_a_detector_of_more_classes_is_evaluated_on_those_the_data_has(
    run: Path, shapes: Path, tmp_path: Path
) -> None:
    content = json.loads((shapes / "annotations/instances_train.json").read_text())
    content["categories"] = list(reversed(content["categories"][1:]))
    known = {category["id"] for category in content["categories"]}
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] in known]
    (tmp_path / "fewer.json").write_text(json.dumps(content))
    arguments = ["--data", str(tmp_path / "fewer.json"), "--images", str(shapes / "images/train")]
    assert main(["val", str(run), *arguments, "--workers", "0", "--out", str(tmp_path)]) == 0
    assert len((tmp_path / "per_class.csv").read_text().splitlines()) == 3


# predict


def test_predict_takes_files_folders_and_globs_of_any_kind_of_picture(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = tmp_path / "pictures"
    (pictures / "deeper").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 4), dtype=np.uint8)
    Image.fromarray(noise).save(pictures / "rgba.png")
    Image.fromarray(noise[..., 0]).save(pictures / "gray.jpg")
    Image.fromarray(noise[..., :3]).save(pictures / "deeper" / "gray.jpg")
    out = tmp_path / "out"
    sources = [str(pictures), str(pictures / "*.png")]
    assert main(["predict", str(run), *sources, "--score", "0", "--out", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (
        len({picture["annotated"] for picture in told}) == len(told) == 4
    )  # no picture overwrites another
    assert all(Image.open(out / picture["annotated"]).size == (60, 40) for picture in told)
    assert told == json.loads((out / "predictions.json").read_text())
    assert {d["name"] for p in told for d in p["detections"]} <= {"circle", "square", "triangle"}


def test_predict_names_a_broken_picture_and_does_the_others(
    run: Path, tmp_path: Path, shapes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"not a picture")
    good = next((shapes / "images/val").iterdir())
    assert (
        main(
            [
                "predict",
                str(run),
                str(tmp_path / "broken.jpg"),
                str(good),
                "--out",
                str(tmp_path / "out"),
            ]
        )
        == 3
    )
    assert "broken.jpg" in capsys.readouterr().err
    assert len(json.loads((tmp_path / "out/predictions.json").read_text())) == 1


def test_predict_without_pictures_is_an_error(run: Path, tmp_path: Path) -> None:
    assert main(["predict", str(run), str(tmp_path / "*.jpg")]) == 2


def test_the_detector_takes_path_picture_array_and_tensor_alike(run: Path, shapes: Path) -> None:
    detector = groupdetr.Detector(run)
    path = sorted((shapes / "images/val").iterdir())[0]
    image = Image.open(path)
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    results = detector.predict([path, str(path), image, array, tensor, tensor / 255], score=0)
    for result in results[1:]:
        np.testing.assert_allclose(result.boxes, results[0].boxes)
        np.testing.assert_allclose(result.scores, results[0].scores)


def test_results_go_to_supervision_and_coco(run: Path, shapes: Path) -> None:
    path = sorted((shapes / "images/val").iterdir())[0]
    (result,) = groupdetr.Detector(run).predict(path, score=0)
    told = result.to_supervision()
    assert len(told) == len(result)
    assert list(told.data["class_name"]) == result.names
    rows = result.to_coco(image_id=7)
    assert rows[0]["image_id"] == 7
    x0, y0, x1, y1 = result.boxes[0]
    assert rows[0]["bbox"] == pytest.approx([x0, y0, x1 - x0, y1 - y0], abs=1e-4)


# nonsense


@pytest.mark.parametrize("verb", ["train", "val", "predict", "check"])
def test_an_output_folder_that_cannot_be_made_is_an_error_before_the_work(
    verb: str,
    run: Path,
    shapes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(DetectionTransformer, "forward", lambda *_: pytest.fail("there was work"))
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "deeper" if verb == "val" else tmp_path / "file"
    given = {"predict": [str(run), str(shapes / "images/val")], "val": [str(run), "--workers", "0"]}
    told = (
        runs.arguments(shapes, out)
        if verb == "train"
        else [verb, *given.get(verb, [str(shapes)]), "--out", str(out)]
    )
    assert main(told) == 2
    said = capsys.readouterr().err
    assert f"where: {tmp_path / 'file'}" in said
    assert "--out" in said


@pytest.mark.parametrize(
    ("nonsense", "named"),
    [
        (["--pretrained-backbone", "resnet50.pth"], "pretrained_backbone"),
        (["--set", "decoder_layers=0"], "decoder_layers"),
    ],
)
def test_what_a_recipe_cannot_follow_is_an_error(
    nonsense: list[str],
    named: str,
    shapes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ["--model", "conditional-detr-tiny", "--out", str(tmp_path / "run")]
    assert main(["train", str(shapes), *options, *nonsense]) == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["train", "val", "predict"])
@pytest.mark.parametrize("device", ["cuda", "tpu"])
def test_a_device_that_is_not_here_is_an_error(
    verb: str,
    device: str,
    run: Path,
    shapes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    given = {
        "train": [str(shapes)],
        "val": [str(run)],
        "predict": [str(run), str(shapes / "images/val")],
    }
    assert main([verb, *given[verb], "--out", str(tmp_path / "out"), "--device", device]) == 2
    assert f"there is no device {device!r} here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("verb", "nonsense"),
    [
        *(("train", ["--queries", "0"]), ("val", ["--imgsz", "0"]), ("val", ["--batch", "0"])),
        *(
            ("predict", ["--imgsz", "0"]),
            ("predict", ["--score", "nan"]),
            ("predict", ["--score", "2"]),
        ),
        *(("demo", ["--epochs", "0"]), ("demo", ["--groups", "0"]), ("demo", ["--seeds", "0"])),
        ("demo", ["--at-once", "0"]),
    ],
)
def test_zero_is_not_taken_as_nothing_given(
    verb: str,
    nonsense: list[str],
    run: Path,
    shapes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = {
        "train": [str(shapes)],
        "val": [str(run)],
        "predict": [str(run), str(shapes / "images/val")],
        "demo": [],
    }
    assert main([verb, *given[verb], "--out", str(tmp_path / "out"), *nonsense]) == 2
    assert nonsense[0].strip("-").replace("-", "_") in capsys.readouterr().err.replace("-", "_")
    assert not (tmp_path / "out").exists()


# the rest


def test_doctor_proves_isolation_and_finds_a_leak(
    capsys: pytest.CaptureFixture[str], run: Path
) -> None:
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["holds"]
    assert main(["doctor", "--model", str(run)]) == 0
    assert main(["doctor", "--model", "table7/c-tiny"]) == 1


def test_presets_lists_every_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["presets", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["table7/d"]["reported"] == 37.6
    assert main(["presets"]) == 0
    listed = capsys.readouterr().out
    assert all(f"{name} " in listed for name in told), "names are whole on a narrow screen"


def test_weights_of_a_run_start_another_with_other_classes_and_groups(
    run: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads((shapes / "annotations/instances_train.json").read_text())
    content["categories"] = [
        {**c, "name": c["name"] if c["id"] == 1 else c["name"] + "s"} for c in content["categories"]
    ]
    (tmp_path / "other.json").write_text(json.dumps(content))
    arguments = [
        "--images",
        str(shapes / "images/train"),
        "--weights",
        str(run / "weights/best.safetensors"),
    ]
    train(tmp_path / "other.json", tmp_path / "run", *arguments, "--steps", "1", "--groups", "4")
    assert "class" in capsys.readouterr().out


class Links(HTMLParser):
    """All that a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [
            value
            for name, value in attrs
            if name == "src" or (tag == "link" and name == "href")
            if value
        ]


def test_a_run_ends_with_a_page_that_needs_nothing_from_outside(run: Path) -> None:
    links = Links()
    links.feed((run / "report.html").read_text())
    assert links.found
    assert all(link.startswith("data:") for link in links.found)


def test_a_page_that_cannot_be_made_does_not_hide_that_the_training_is_done(
    shapes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def report(_: object) -> Path:
        raise KeyError("size")

    monkeypatch.setitem(verbs.VERBS, "pictures", replace(verbs.VERBS["pictures"], report=report))
    assert main(runs.arguments(shapes, tmp_path / "run", "--steps", "1")) == 1
    said = capsys.readouterr().err
    assert "the training is done" in said
    assert str(tmp_path / "run/weights/best.safetensors") in said
    assert (tmp_path / "run/weights/best.safetensors").is_file()


def smaller(monkeypatch: pytest.MonkeyPatch, counts: dict[str, int]) -> None:
    """The demo's pictures, but fewer."""
    of_pictures = verbs.VERBS["pictures"]
    exhibit = replace(
        of_pictures.exhibit,
        draw=lambda folder: write(DEMO_DATA, folder, counts),
        count=counts["train"],
    )
    monkeypatch.setitem(verbs.VERBS, "pictures", replace(of_pictures, exhibit=exhibit))


def test_the_demo_compares_and_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smaller(monkeypatch, {"train": 16, "val": 12})
    arguments = ["demo", "--epochs", "1", "--groups", "2", "--out", str(tmp_path / "demo")]
    assert main(arguments) == 0
    told = json.loads((tmp_path / "demo/metrics.json").read_text())
    assert [run["groups"] for run in told["runs"]] == [1, 2]
    assert {"AP", "AP50", "epochs", "seconds", "peak_memory_mb"} <= set(told["runs"][0])
    written = (tmp_path / "demo/k2-seed0/weights/last.pt").stat().st_mtime
    assert main(arguments) == 0
    assert (tmp_path / "demo/k2-seed0/weights/last.pt").stat().st_mtime == written
    assert main([*arguments[:2], "2", *arguments[3:]]) == 2


def test_figure_8_trains_its_four_and_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smaller(monkeypatch, {"train": 8, "val": 8})
    out = tmp_path / "fig8"
    arguments = ["demo", "--figure", "8", "--groups", "2", "--out", str(out), "--epochs"]
    assert main([*arguments, "1"]) == 0
    told = json.loads((out / "metrics.json").read_text())
    assert [(run["training"], run["groups"]) for run in told["runs"]] == [
        *(("none", 1), ("denoising", 1), ("groups", 2), ("both", 2))
    ]
    assert told["paper"]["both"] == 40.6
    assert "Groups" in (out / "report.html").read_text()
    written = (out / "both-seed0/weights/last.pt").stat().st_mtime
    assert main([*arguments, "1"]) == 0
    assert (out / "both-seed0/weights/last.pt").stat().st_mtime == written
    assert main([*arguments, "2"]) == 2, "the folder is for other options"
    assert main(["demo", "--groups", "2", "--epochs", "1", "--out", str(out)]) == 2, (
        "and for another comparison"
    )


@pytest.mark.parametrize("nonsense", [["--model", "conditional-detr-tiny"], ["--groups", "1"]])
def test_options_that_figure_8_has_no_use_for_are_refused(
    nonsense: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--figure", "8", "--out", str(tmp_path / "fig8"), *nonsense]) == 2
    assert nonsense[0] in capsys.readouterr().err
    assert not (tmp_path / "fig8").exists()
