"""Names of classes, files and runs may hold anything. Commands print them and lose nothing."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from groupdetr.cli.main import main

# Classes of the dataset, and how they are printed.
NAMES = {
    "[other]": "[other]",
    "screw [/M8]": "screw [/M8]",
    ":car:": ":car:",
    "<b>&amp;": "<b>&amp;",
    "red\x1b[31m": r"red\x1b[31m",
    "two\nerror: lines": r"two\nerror: lines",
    "汽车": "汽车",
    "half \ud800": r"half \ud800",
    "gpj.\u202eexe": r"gpj.\u202eexe",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with an object of every class in each image."""
    root = tmp_path_factory.mktemp("data [b]")
    categories = [{"id": number, "name": name} for number, name in enumerate(NAMES, start=1)]
    for split in ("train", "val"):
        (root / "images" / split).mkdir(parents=True)
        images, annotations = [], []
        for image_id in (1, 2):
            name = f"{image_id} [x].png"
            Image.new("RGB", (64, 48), (70, 90, 30 * image_id)).save(root / "images" / split / name)
            images.append({"id": image_id, "file_name": name, "width": 64, "height": 48})
            for category in categories:
                box = [4 * category["id"], 5, 20, 30]
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": category["id"],
                        "bbox": box,
                        "area": 600,
                        "iscrowd": 0,
                    }
                )
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}.json").write_text(
            json.dumps(content), encoding="utf-8"
        )
    return root


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "exp[lr=1e-4]"
    options = ["--model", "conditional-detr-tiny", "--groups", "2", "--steps", "1", "--batch", "2"]
    assert main(["train", str(data), *options, "--workers", "0", "--out", str(folder)]) == 0
    return folder


def expect_printable(text: str) -> None:
    assert not set(text) & {"\x1b", "\u202e", "\ud800"}
    assert not any(line.startswith("error: lines") for line in text.splitlines())


def test_the_commands_that_a_training_prints_name_its_folder(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(run, tmp_path / run.name)
    resume = ["--resume", str(run), "--steps", "2"]
    assert main(["train", *resume]) == 0
    output = capsys.readouterr().out
    quoted = str(run) if sys.platform == "win32" else f"'{run}'"
    assert f"groupdetr predict {quoted} IMAGES" in output
    assert f"output  {run}" in output


def test_val_prints_every_class_by_its_name(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["val", str(run), "--workers", "0", "--out", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    expect_printable(output)
    rows = output.splitlines()
    for printed in NAMES.values():
        assert any(row.startswith(printed + " ") for row in rows), printed


def test_check_and_predict_print_every_name(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(data)]) == 0
    expect_printable(capsys.readouterr().out)
    images = str(data / "images/val")
    assert main(["predict", str(run), images, "--score", "0", "--out", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    expect_printable(output)
    assert f"{data / 'images/val' / '1 [x].png'}: " in output


@pytest.mark.parametrize("command", ["check", "val", "predict", "presets", "doctor"])
def test_no_command_needs_an_output_in_utf8(
    command: str,
    run: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = {
        "check": [str(data)],
        "val": [str(run), "--workers", "0", "--out", str(tmp_path)],
        "predict": [str(run), str(data / "images/val"), "--score", "0", "--out", str(tmp_path)],
        "presets": [],
        "doctor": [],
    }[command]
    raw = io.BytesIO()
    # On Windows, the output to a file or a pipe is cp1252.
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="cp1252"))
    assert main([command, *arguments]) == 0
    sys.stdout.flush()
    text = raw.getvalue().decode("cp1252")
    expect_printable(text)
    if command in ("check", "val"):
        assert r"\u6c7d\u8f66" in text


def test_the_page_has_every_name_as_text(run: Path) -> None:
    page = (run / "report.html").read_text(encoding="utf-8")
    assert not set(page) & {"\x1b", "\u202e", "\ud800"}
    for name in ("[other]", "screw [/M8]", "&lt;b&gt;&amp;amp;", "汽车", r"half \ud800"):
        assert f">{name}<" in page, name


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names are Unicode there")
def test_an_image_whose_name_is_not_utf8_is_predicted(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in (b"caf\xe9.png", b"two\nlines.png", b"\x1b[31m.png"):
        Image.new("RGB", (30, 20)).save(tmp_path / "image.png")
        os.rename(os.fsencode(tmp_path / "image.png"), os.fsencode(photos) + b"/" + name)
    out = tmp_path / "out"
    arguments = ["predict", str(run), str(photos), "--out", str(out), "--score", "0"]
    assert main(arguments) == 0
    output = capsys.readouterr().out
    expect_printable(output)
    assert r"caf\udce9.png: " in output
    assert len(output.splitlines()) == 4
    assert len(os.listdir(out)) == 4


def test_errors_and_their_paths_control_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    name = "x\x1b[2J\nerror: lines"
    for arguments in (["predict", name, "a.jpg"], ["val", name], ["check", name], [name]):
        assert main(arguments) in (2, 3)
        output = capsys.readouterr()
        message = output.out + output.err  # the findings of check are its output
        expect_printable(message)
        assert r"\x1b[2J" in message
    with pytest.raises(SystemExit):
        main(["check", f"--{name}"])
    expect_printable(capsys.readouterr().err)
