"""Models on the Hugging Face hub: which arguments name one, and how its files come here."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path, PureWindowsPath

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save

from groupdetr.checkpoints import hub as hub_module
from groupdetr.checkpoints.hub import (
    HubModel,
    commit_of,
    download,
    model_named,
    name_with_revision,
)
from groupdetr.checkpoints.reading import open_checkpoint
from groupdetr.errors import WeightsError
from tests.hub import use_endpoint, write_to_cache
from tests.hub_server import HubServer

PARTS = [{"a": torch.arange(3.0)}, {"b": torch.ones(2, 2)}]
CONFIG = json.dumps({"num_queries": 7}).encode()
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
SHARDED = {
    "config.json": CONFIG,
    **{name: save(part) for name, part in zip(SHARDS, PARTS)},
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}}
    ).encode(),
}


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "current").mkdir()
    monkeypatch.chdir(tmp_path / "current")


ARGUMENTS: list[tuple[object, HubModel | None]] = [
    ("microsoft/conditional-detr-resnet-50", HubModel("microsoft/conditional-detr-resnet-50")),
    ("user/name@v1", HubModel("user/name", "v1")),
    ("user/name@refs/pr/1", HubModel("user/name", "refs/pr/1")),
    ("user/name@main/a/b.pth", HubModel("user/name", "main", "a/b.pth")),
    ("user/name@refs/pr/1/x.ckpt", HubModel("user/name", "refs/pr/1", "x.ckpt")),
    ("user/name@v1.pt", HubModel("user/name", "v1.pt")),
    ("user/name@main/../x.pth", None),
    ("user/name/x.pth", None),
    (
        "LWDETR_tiny_60e_coco.pth",
        HubModel("xbsu/LW-DETR", "main", "pretrain_weights/LWDETR_tiny_60e_coco.pth"),
    ),
    ("LWDETR_huge_60e_coco.pth", None),
    ("timm/resnet50.tv_in1k", HubModel("timm/resnet50.tv_in1k")),
    ("runs/mine@main", HubModel("runs/mine", "main")),
    (Path("user/name"), HubModel("user/name")),
    (PureWindowsPath("user/name"), HubModel("user/name")),
    ("name", None),
    ("a/b/c", None),
    ("/user/name", None),
    ("../name", None),
    ("https://huggingface.co/user/name", None),
    ("user/name@../../secret", None),
    ("user/weights.pth", None),
    ("user/mäuse", None),
    ("runs/mien", None),  # a path that was mistyped: there is a folder runs
    ("runz/mine", None),  # and here, a similar path exists
    ("runs/mine", None),  # it exists
    ("own/model@v1", None),  # it exists, whatever its name looks like
    (f"user/{'x' * 200}", None),
    ("\0/a", None),
]


def test_an_argument_is_a_model_on_the_hub_only_in_its_form_and_without_such_a_path() -> None:
    Path("runs/mine").mkdir(parents=True)
    Path("own/model@v1").mkdir(parents=True)
    for argument, model in ARGUMENTS:
        assert model_named(argument) == model, argument


def test_a_published_file_that_is_not_there_is_known_by_its_name(hub: HubServer) -> None:
    """Files of Roboflow and PaddleDetection are not on the hub, and nothing is downloaded."""
    with pytest.raises(WeightsError, match="the name of a published file of weights") as refused:
        open_checkpoint("weights/rf-detr-nano.pth")
    address = "https://storage.googleapis.com/rfdetr/nano_coco/checkpoint_best_regular.pth"
    assert refused.value.remedy.endswith(f"curl -o rf-detr-nano.pth {address}")
    assert hub.requests == []


def test_a_mistyped_path_is_not_looked_up_and_the_message_says_how_to_name_a_model(
    hub: HubServer,
) -> None:
    Path("runs/mine").mkdir(parents=True)
    with pytest.raises(WeightsError, match=r"did you mean runs/mine\?.* runs/mien@main"):
        open_checkpoint("runs/mien")
    assert name_with_revision("x.pth") == ""
    assert hub.requests == []


def test_a_sharded_model_is_downloaded_once_and_read_like_its_folder(hub: HubServer) -> None:
    extra = {"training/optimizer.bin": b"", "onnx/model.safetensors": b"", "notes.txt": b""}
    commit = hub.add("user/name", {**SHARDED, "pytorch_model.bin": b"", **extra})
    checkpoint = open_checkpoint("user/name")
    assert {name: value.tolist() for name, value in checkpoint.state.items()} == {
        "a": [0.0, 1.0, 2.0],
        "b": [[1.0, 1.0], [1.0, 1.0]],
    }
    assert checkpoint.metadata["num_queries"] == 7
    assert checkpoint.where == "user/name"
    folder = download(HubModel("user/name"))
    assert folder.name == commit
    assert {file.name for file in folder.iterdir()} == SHARDED.keys()
    weights = [r for r in hub.requests if r.startswith("GET") and r.endswith(SHARDS[0])]
    assert len(weights) == 1


def test_a_revision_is_another_model(hub: HubServer) -> None:
    hub.add("user/name", {"config.json": b"{}", "model.safetensors": save(PARTS[0])}, "v1")
    hub.add("user/name", {"config.json": b"{}", "model.safetensors": save(PARTS[1])})
    assert open_checkpoint("user/name@v1").state.keys() == {"a"}
    assert open_checkpoint("user/name").state.keys() == {"b"}
    with pytest.raises(WeightsError, match="this model has no revision 'v2'"):
        open_checkpoint("user/name@v2")


def test_pickled_weights_are_downloaded_only_if_there_are_no_others(
    hub: HubServer, tmp_path: Path
) -> None:
    torch.save(PARTS[0], tmp_path / "a.pth")
    hub.add("user/pickled", {"weights.pth": (tmp_path / "a.pth").read_bytes(), "x.md": b""})
    assert open_checkpoint("user/pickled").state.keys() == {"a"}
    assert download(HubModel("user/pickled")).name == "weights.pth"


def test_of_several_files_of_weights_one_is_named_and_only_that_one_is_downloaded(
    hub: HubServer, tmp_path: Path
) -> None:
    files = {}
    for name, part in zip(("tiny.pth", "large.pth"), PARTS):
        torch.save(part, tmp_path / name)
        files[f"pretrain_weights/{name}"] = (tmp_path / name).read_bytes()
    commit = hub.add("user/several", {**files, "README.md": b""})
    with pytest.raises(WeightsError, match=r"several files of weights: .*/large\.pth.*") as refused:
        open_checkpoint("user/several")
    name = "user/several@main/pretrain_weights/large.pth"
    assert refused.value.remedy == f"name the file, such as {name}"
    assert not [request for request in hub.requests if "resolve" in request]

    checkpoint = open_checkpoint(name)
    assert (checkpoint.state.keys(), checkpoint.where) == ({"b"}, name)
    model = model_named(name)
    assert model is not None
    assert commit_of(model, download(model)) == commit
    assert not [request for request in hub.requests if request.endswith("tiny.pth")]
    with pytest.raises(WeightsError, match=r"has no file small\.pth") as refused:
        open_checkpoint("user/several@main/small.pth")
    assert "pretrain_weights/large.pth, pretrain_weights/tiny.pth" in refused.value.remedy


def test_a_model_that_is_not_there_or_has_no_weights_is_refused(hub: HubServer) -> None:
    hub.add("user/dataset", {"README.md": b"text"})
    with pytest.raises(WeightsError, match="no such model on the Hugging Face hub"):
        open_checkpoint("user/nowhere")
    with pytest.raises(WeightsError, match="has no weights that can be read"):
        open_checkpoint("user/dataset")


def test_an_existing_path_is_read_although_the_hub_has_a_model_of_the_name(hub: HubServer) -> None:
    hub.add("user/name", {"config.json": b"{}", "model.safetensors": save(PARTS[0])})
    Path("user/name").mkdir(parents=True)
    Path("user/name/config.json").write_text("{}")
    Path("user/name/model.safetensors").write_bytes(save(PARTS[1]))
    assert open_checkpoint("user/name").state.keys() == {"b"}
    assert hub.requests == []


def test_without_a_network_the_message_says_what_is_missing_and_how_to_bring_it(
    no_network: Path,
) -> None:
    start = time.monotonic()
    with pytest.raises(WeightsError, match=r"127\.0\.0\.1:9\) cannot be reached") as refused:
        open_checkpoint("user/name@v1")
    assert time.monotonic() - start < 30  # huggingface-hub alone retries for a minute
    assert refused.value.where == f"user/name, revision v1; cache: {no_network}"
    for text in ("hf download user/name --revision v1", "models--user--name", "HF_HUB_OFFLINE=1"):
        assert text in refused.value.remedy
    assert constants.HF_HUB_OFFLINE is False


@pytest.mark.parametrize("offline", [False, True])
def test_without_a_network_models_in_the_cache_are_read(
    offline: bool,
    no_network: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Also those that were copied there, or that `hf download` has brought."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    snapshot = write_to_cache(no_network, "user/name", SHARDED, ref="v1")
    assert open_checkpoint("user/name@v1").state.keys() == {"a", "b"}
    assert open_checkpoint(f"user/name@{snapshot.name}").state.keys() == {"a", "b"}
    # That it may be an old version is said, unless the user has chosen to be offline.
    assert ("user/name@v1 is read from the cache" in caplog.text) is not offline


def test_offline_nothing_is_asked_of_the_hub(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.add("user/name", SHARDED)
    with pytest.raises(WeightsError, match="HF_HUB_OFFLINE is set") as refused:
        open_checkpoint("user/name")
    assert "unset HF_HUB_OFFLINE" in refused.value.remedy
    assert hub.requests == []


def test_an_incomplete_copy_in_the_cache_is_not_taken_for_the_model(no_network: Path) -> None:
    write_to_cache(no_network, "user/name", {"config.json": CONFIG})
    with pytest.raises(WeightsError, match="no such model in the cache"):
        open_checkpoint("user/name")


def test_a_server_that_does_not_answer_counts_as_unreachable(
    hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "CONNECT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:  # It accepts connections.
        use_endpoint(monkeypatch, f"http://127.0.0.1:{server.getsockname()[1]}")
        start = time.monotonic()
        with pytest.raises(WeightsError, match="cannot be reached"):
            open_checkpoint("user/name")
    assert time.monotonic() - start < 30


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_a_link_that_leads_nowhere_is_a_path() -> None:
    Path("user").mkdir()
    Path("user/name").symlink_to("nowhere")
    assert model_named("user/name") is None
