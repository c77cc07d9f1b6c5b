"""Everything on `docs/extending.md` runs as it is written, with shorter trainings."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import groupdetr
from groupdetr import registry
from groupdetr.cli.main import main
from groupdetr.data import formats
from groupdetr.experiments.by_name import EXPERIMENTS
from groupdetr.modeling.backbones import registry as backbones
from tests.report.checks import assert_self_contained
from tests.runs import losses_by_step

PAGE = (Path(__file__).parents[2] / "docs/extending.md").read_text(encoding="utf-8")
SHORT_TRAINING = "--steps 2 --batch 4 --imgsz 48 --workers 0 --threads 1 --device cpu"
SHORT = {
    "train": SHORT_TRAINING.split(),
    "val": ["--workers", "0"],
    "check": [],
    "doctor": [],
    "presets": [],
    "predict": [],
}


def section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def code_blocks(title: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", section(title), flags=re.DOTALL)


def run_commands(title: str) -> None:
    """Run the commands of a section in order, each to its successful end."""
    for block in code_blocks(title, "console"):
        for line in block.splitlines():
            program, command, *arguments = line.replace("'", "").split()
            assert program == "groupdetr"
            if command == "train" and "--resume" in arguments:
                arguments += ["--steps", "3"]
            else:
                arguments += SHORT[command]
            assert main([command, *arguments]) == 0, line


@pytest.fixture(autouse=True)
def _folder(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Work in a folder with the data and the files of the page, and forget what it registers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    shutil.copytree(shapes, "data/mine")
    shutil.copy(min(Path("data/mine").rglob("*.jpg")), "photo.jpg")
    for code in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
        name = re.match(r"# (\w+\.py)\n", code)
        if name:
            Path(name[1]).write_text(code, encoding="utf-8")
    monkeypatch.setattr(registry, "_loaded_plugins", [])
    monkeypatch.setattr(backbones, "_BACKBONES", dict(backbones._BACKBONES))
    monkeypatch.setattr(formats, "_FORMATS", [])
    experiments = dict(EXPERIMENTS)
    yield
    EXPERIMENTS.clear()
    EXPERIMENTS.update(experiments)


def test_a_detector(capsys: pytest.CaptureFixture[str]) -> None:
    run_commands("A detector")
    printed = capsys.readouterr().out
    assert "shared-attention-tiny" in printed
    assert "groups are separate" in printed
    _, use = code_blocks("A detector", "python")
    variables: dict[str, Any] = {"groupdetr": groupdetr}
    exec(use, variables)
    first, *others = variables["detector"].model.decoder.layers
    assert all(layer.self_attention is first.self_attention for layer in others)
    # A checkpoint alone does not load the plugin.
    registry._loaded_plugins.clear()
    del EXPERIMENTS["shared-attention-tiny"]
    assert main(["val", "runs/shared"]) == 2
    assert "my_models:SharedAttentionDETR, which is not known" in capsys.readouterr().err


def test_a_backbone() -> None:
    run_commands("A backbone")
    recipe = groupdetr.Detector("runs/patches").recipe
    assert recipe.backbone == "patch-net"
    with pytest.raises(groupdetr.GroupDETRError, match="a map of stride 8, and the detector needs"):
        groupdetr.create_model("dino-tiny", backbone="patch-net")
    with pytest.raises(ValueError, match="always starts from random weights"):
        groupdetr.create_model("dab-detr-tiny", backbone="patch-net", pretrained_backbone=True)


def test_a_data_format(capsys: pytest.CaptureFixture[str]) -> None:
    """The same images and boxes as CSV give the same training as COCO JSON, bit for bit."""
    Path("data/csv").mkdir()
    for split in ("train", "val"):
        write_csv(Path("data/mine"), split, Path("data/csv"))
    run_commands("A data format")
    train = ["--model", "dino-tiny", "--out", "runs/coco", *SHORT["train"]]
    assert main(["train", "data/mine", *train]) == 0
    csv_losses, coco_losses = losses_by_step(Path("runs/csv")), losses_by_step(Path("runs/coco"))
    assert csv_losses.keys() == {1, 2}
    assert csv_losses == coco_losses

    lines = Path("data/csv/train.csv").read_text(encoding="utf-8").splitlines()
    lines[3] = lines[3].replace(",", ",a", 1)
    Path("data/csv/train.csv").write_text("\n".join(lines), encoding="utf-8")
    capsys.readouterr()
    assert main(["check", "data/csv", "--plugin", "csv_format.py"]) == 3
    assert "train.csv: line 4" in capsys.readouterr().out


def write_csv(coco: Path, split: str, out: Path) -> None:
    """Write a split of COCO JSON as CSV. Categories are sorted by their names, as by their ids."""
    (file,) = coco.rglob(f"*{split}*.json")
    content = json.loads(file.read_text(encoding="utf-8"))
    names = {category["id"]: category["name"] for category in content["categories"]}
    images = {image["id"]: image["file_name"] for image in content["images"]}
    lines = ["image,x0,y0,x1,y1,class"]
    for annotation in content["annotations"]:
        x, y, width, height = annotation["bbox"]
        image = f"{split}-{images[annotation['image_id']]}"
        values = (image, x, y, x + width, y + height, names[annotation["category_id"]])
        lines.append(",".join(map(str, values)))
    for name in images.values():
        source = next(coco.rglob(f"{split}/{name}"))
        shutil.copy(source, out / f"{split}-{name}")
    (out / f"{split}.csv").write_text("\n".join(lines), encoding="utf-8")


def test_a_figure() -> None:
    (script,) = code_blocks("A figure", "python")
    script = script.replace("epochs=20", "steps=2, batch=4, imgsz=48, workers=0, threads=1")
    exec(compile(script, "groups_figure.py", "exec"), {})
    html = Path("groups.html").read_text(encoding="utf-8")
    assert "How many groups?" in html
    assert html.count("<svg") == 1
    assert_self_contained(html)
