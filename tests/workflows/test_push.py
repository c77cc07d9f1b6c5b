"""`groupdetr push`, and the use of what it publishes by every command that takes weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import constants
from safetensors.torch import save

import groupdetr
from groupdetr.checkpoints.native import read, unique_state
from groupdetr.cli.main import main
from groupdetr.detectors.conditional_detr import ConditionalDETR
from groupdetr.errors import UsageError
from groupdetr.report.model_card import last_part
from groupdetr.tasks.run_or_weights import weights_of
from groupdetr.weights.huggingface_conditional_detr import HUGGING_FACE
from tests.hub import write_to_cache
from tests.hub_server import HubServer
from tests.json_docs import assert_documented
from tests.runs import train, train_arguments
from tests.weights.inverted import invert

Captured = pytest.CaptureFixture[str]
FILES = ["README.md", "config.json", "model.safetensors"]


@pytest.fixture(scope="module")
def run(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run with two groups."""
    return train(shapes, tmp_path_factory.mktemp("secret-folder") / "run", "--steps", "4")


@pytest.fixture(scope="module")
def image(shapes: Path) -> Path:
    return min((shapes / "images/val").iterdir())


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "current").mkdir()
    monkeypatch.chdir(tmp_path / "current")


def card(folder: Path) -> tuple[dict[str, object], str]:
    """The metadata of a model card, and its text."""
    _, header, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(header), text


def equal_detections(first: str | Path, second: str | Path, image: Path) -> bool:
    detectors = [groupdetr.Detector(source, "cpu", imgsz=64) for source in (first, second)]
    boxes = [detector.predict(image, 0.0)[0].detections.boxes for detector in detectors]
    return len(boxes[0]) > 0 and torch.equal(boxes[0], boxes[1])


# the files


def test_the_files_are_the_weights_the_configuration_and_the_card(
    run: Path, capsys: Captured
) -> None:
    assert main(["push", str(run), "me/shapes", "--out", "out", "--license", "apache-2.0"]) == 0
    assert "hf upload me/shapes out" in capsys.readouterr().out
    out = Path("out")
    assert sorted(file.name for file in out.iterdir()) == FILES
    assert (out / "model.safetensors").read_bytes() == (
        run / "weights/best.safetensors"
    ).read_bytes()
    config = json.loads((out / "config.json").read_text())
    assert config["recipe"] == read(run / "weights/best.safetensors")[1]["recipe"]
    assert [name for _, name in config["categories"]] == groupdetr.Detector(run).names


def test_the_card_has_the_figures_the_classes_and_the_settings(run: Path) -> None:
    groupdetr.push(run, "me/shapes", out="out", license="apache-2.0")
    header, text = card(Path("out"))
    assert header["license"] == "apache-2.0"
    assert header["library_name"] == "groupdetr"
    assert header["pipeline_tag"] == "object-detection"
    best = json.loads((run / "weights/best.json").read_text())
    (result,) = header["model-index"][0]["results"]  # type: ignore[index]
    metrics = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert metrics["AP"] == pytest.approx(best["AP"], abs=1e-4)
    assert f"| AP50 | {100 * best['AP50']:.1f} % |" in text
    for row in best["per_class"]:
        assert f"| {row['name']} | {100 * row['AP']:.1f} % |" in text
    assert "| steps | 4 |" in text
    assert "images in train | 24 |" in text
    assert 'groupdetr.Detector("me/shapes")' in text


def test_no_path_of_this_machine_is_published(run: Path, shapes: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["weights"] = str(run / "weights/best.safetensors")
    config["pretrained_backbone"] = "/home/someone/secret-folder/resnet.pth"
    config["images"] = str(shapes / "images")
    config["set"] = ["backbone=/home/someone/secret-folder/x", "dropout=0"]
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    groupdetr.push(copy, "me/shapes", out="out")
    content = b"".join((Path("out") / name).read_bytes() for name in FILES)
    for path in ("secret-folder", str(shapes.parent), str(tmp_path), "someone"):
        assert path.encode() not in content
    text = card(Path("out"))[1]
    assert "| first weights | best.safetensors |" in text
    assert "dropout=0" in text


def test_the_last_part_of_a_path_of_any_system_has_no_folder() -> None:
    assert last_part("/home/me/photos/") == "photos"
    assert last_part(r"C:\Users\me\photos") == "photos"


def test_names_of_classes_do_not_break_the_tables(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    best = json.loads((copy / "weights/best.json").read_text())
    best["per_class"][0]["name"] = "a|b\n<img src=x>"
    (copy / "weights/best.json").write_text(json.dumps(best))
    groupdetr.push(copy, "me/shapes", out="out")
    (line,) = (line for line in card(Path("out"))[1].splitlines() if "img src" in line)
    assert line.startswith(r"| a\|b")
    assert r"\<img src=x\>" in line


def test_a_weights_file_has_a_card_without_figures(run: Path, tmp_path: Path) -> None:
    file = shutil.copy(run / "weights/best.safetensors", tmp_path / "mine.safetensors")
    groupdetr.push(file, "me/shapes", out="out")
    header, text = card(Path("out"))
    assert "model-index" not in header
    assert ", ".join(groupdetr.Detector(run).names) in text


def test_only_a_folder_of_push_is_written_again(run: Path, capsys: Captured) -> None:
    groupdetr.push(run, "me/shapes", out="out")
    groupdetr.push(run, "me/shapes", out="out")
    Path("own").mkdir()
    Path("own/README.md").write_text("my notes")
    with pytest.raises(UsageError, match="the command did not write it"):
        groupdetr.push(run, "me/shapes", out="own")
    assert Path("own/README.md").read_text() == "my notes"
    # A folder is not replaced by itself: its card has the figures of the run, which is not given.
    card = Path("out/README.md").read_text(encoding="utf-8")
    for source in ("out", "out/model.safetensors"):
        assert main(["push", source, "me/shapes", "--out", "out"]) == 2
        assert "would be replaced" in capsys.readouterr().err
        assert Path("out/README.md").read_text(encoding="utf-8") == card


@pytest.mark.parametrize("name", ["shapes", "me/shapes@v1", "a/b/c", "me/", "https://x.y/me/a"])
def test_another_name_than_owner_and_name_is_refused(run: Path, name: str) -> None:
    with pytest.raises(UsageError, match="not the name of a model") as refused:
        groupdetr.push(run, name, out="out")
    assert "OWNER/NAME" in refused.value.remedy
    assert not Path("out").exists()


# the upload


def test_a_pushed_run_is_used_by_its_name(
    run: Path, shapes: Path, image: Path, hub: HubServer, capsys: Captured
) -> None:
    """By Detector, predict, val, export's and import's reader, and as the weights of a training."""
    assert main(["push", str(run), "me/shapes", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert_documented("push", result)
    assert result["url"].startswith(f"{hub.endpoint}/me/shapes/commit/")
    model = hub.models["me/shapes"]
    assert not model.private
    files = model.commits[model.refs["main"]]
    assert files["model.safetensors"] == (run / "weights/best.safetensors").read_bytes()

    assert equal_detections("me/shapes", run, image)
    assert main(["predict", "me/shapes", str(image)]) == 0
    assert Path("runs/me--shapes/predict/predictions.json").is_file()
    metrics = groupdetr.evaluate("me/shapes", shapes, workers=0)
    assert metrics["AP"] == json.loads((run / "val/metrics.json").read_text())["AP"]
    assert any(Path("runs/me--shapes").glob("val*/metrics.json"))
    assert main(["import", "me/shapes", "--groups", "1"]) == 0
    assert equal_detections("me--shapes.groupdetr.safetensors", run, image)

    arguments = train_arguments(shapes, Path("next"), "--steps", "1", "--weights", "me/shapes")
    assert main(arguments) == 0
    assert "me/shapes: read as groupdetr" in capsys.readouterr().out
    assert yaml.safe_load(Path("next/config.yaml").read_text())["weights"] == "me/shapes"
    groupdetr.push("next", "me/next", out="out")
    assert card(Path("out"))[0]["base_model"] == "me/shapes"


def test_the_folder_of_a_push_is_a_run_or_weights_too(run: Path, image: Path) -> None:
    groupdetr.push(run, "me/shapes", out="out")
    assert equal_detections("out", run, image)


def test_a_second_push_is_another_commit(run: Path, hub: HubServer) -> None:
    first = groupdetr.push(run, "me/shapes")
    second = groupdetr.push(run, "me/shapes", license="mit")
    assert first.url != second.url
    assert len(hub.models["me/shapes"].commits) == 3  # with the one that created it


def test_a_private_model_is_created_private_and_a_public_one_is_left_alone(
    run: Path, hub: HubServer
) -> None:
    groupdetr.push(run, "me/secret", private=True)
    assert hub.models["me/secret"].private
    hub.add("me/open", {"README.md": b"mine"})
    with pytest.raises(UsageError, match="everybody can see it"):
        groupdetr.push(run, "me/open", private=True)
    assert len(hub.models["me/open"].commits) == 1


def test_without_a_login_nothing_is_asked_of_the_hub(
    run: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    with pytest.raises(UsageError, match="nobody is logged in") as refused:
        groupdetr.push(run, "me/shapes")
    assert "hf auth login" in refused.value.remedy
    assert hub.requests == []


def test_a_login_that_the_hub_refuses_is_an_error_that_says_so(
    run: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UsageError, match="could not be uploaded") as refused:
        groupdetr.push(run, "me/shapes")
    assert "hf auth login" in refused.value.remedy
    assert hub.models == {}


@pytest.mark.usefixtures("no_network")
def test_without_a_network_nothing_is_uploaded_and_the_files_can_be_written(run: Path) -> None:
    with pytest.raises(UsageError, match="cannot be reached") as refused:
        groupdetr.push(run, "me/shapes")
    assert "--out FOLDER" in refused.value.remedy


def test_a_pushed_model_is_read_from_the_cache_offline(
    run: Path, image: Path, hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groupdetr.push(run, "me/shapes", out="out")
    files = {name: (Path("out") / name).read_bytes() for name in FILES}
    write_to_cache(hub_cache, "me/shapes", files, ref="v1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert equal_detections("me/shapes@v1", run, image)


# models of others


@pytest.fixture(scope="module")
def theirs() -> tuple[dict[str, torch.Tensor], dict[str, bytes]]:
    """The weights of a small model, and its files as transformers writes them."""
    small = {"channels": 32, "num_heads": 2, "dim_feedforward": 32, "num_queries": 6}
    recipe = ConditionalDETR(
        num_classes=3, num_groups=1, encoder_layers=1, decoder_layers=2, **small
    )
    with torch.device("meta"):  # without the random weights of a ResNet-50, which take a second
        state = unique_state(recipe.build())
    state = {name: torch.rand(tensor.shape) for name, tensor in state.items()}
    inverted = {name: tensor.clone() for name, tensor in invert(HUGGING_FACE, state).items()}
    labels = {"0": "bar", "1": "disc", "2": "ring"}
    config = {"id2label": labels, "encoder_attention_heads": 2, "dilation": False}
    files = {"model.safetensors": save(inverted), "config.json": json.dumps(config).encode()}
    return state, files


def assert_converted(file: Path, state: dict[str, torch.Tensor]) -> None:
    converted, metadata = read(file)
    assert converted.keys() == state.keys()
    assert all(torch.equal(converted[name], state[name]) for name in state)
    assert metadata["categories"] == [[0, "bar"], [1, "disc"], [2, "ring"]]
    assert metadata["recipe"]["preset"] == "conditional-detr-r50"
    assert file.is_relative_to(constants.HF_ASSETS_CACHE)


def test_a_model_of_transformers_is_converted_once_and_then_has_the_same_weights(
    hub: HubServer, theirs: tuple[dict[str, torch.Tensor], dict[str, bytes]]
) -> None:
    state, files = theirs
    hub.add("them/small", files)
    file = weights_of("them/small")
    assert_converted(file, state)
    written = file.stat().st_mtime_ns
    assert weights_of("them/small").stat().st_mtime_ns == written


def test_a_local_folder_of_transformers_is_used_as_one_on_the_hub_is(
    hub_cache: Path, theirs: tuple[dict[str, torch.Tensor], dict[str, bytes]]
) -> None:
    """It is converted once, and again when its files have changed."""
    state, files = theirs
    folder = Path("downloaded")
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    file = weights_of(folder)
    assert_converted(file, state)
    written = file.stat().st_mtime_ns
    assert weights_of("downloaded") == file
    assert file.stat().st_mtime_ns == written
    labels = {"0": "a", "1": "b", "2": "c"}
    config = json.loads(files["config.json"]) | {"id2label": labels}
    (folder / "config.json").write_text(json.dumps(config) + " ")
    changed = weights_of(folder)
    assert changed != file
    assert read(changed)[1]["categories"] == [[0, "a"], [1, "b"], [2, "c"]]
    assert sorted(path.name for path in folder.iterdir()) == sorted(files)
    # A file of weights without the configuration is named, as before.
    (folder / "config.json").unlink()
    with pytest.raises(UsageError, match="not the folder of a run"):
        weights_of(folder)


def test_the_score_threshold_of_the_run_goes_along(
    run: Path, tmp_path: Path, hub: HubServer
) -> None:
    """`predict` uses it for the folder, for the model on the hub, and for a push of that."""
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    best = json.loads((copy / "weights/best.json").read_text())
    (copy / "weights/best.json").write_text(json.dumps(best | {"score_threshold": 0.37}))
    groupdetr.push(copy, "me/shapes", out="out")
    groupdetr.push(copy, "me/shapes")
    groupdetr.push("out", "me/again", out="again")
    for source in ("out", "me/shapes", "again"):
        assert groupdetr.Detector(source, "cpu").score == 0.37
    assert json.loads(Path("out/config.json").read_text())["score_threshold"] == 0.37
    (copy / "weights/best.json").write_text(json.dumps(best | {"score_threshold": None}))
    groupdetr.push(copy, "me/shapes", out="out")
    assert "score_threshold" not in json.loads(Path("out/config.json").read_text())
    assert groupdetr.Detector("out", "cpu").score == 0.5
