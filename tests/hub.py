"""Fixtures of the Hugging Face hub. No test connects to the real one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from groupdetr.checkpoints import hub as hub_module
from tests.hub_server import TOKEN, HubServer, running_hub


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of huggingface-hub, which is empty. HF_HUB_OFFLINE is not set."""
    home = tmp_path / "huggingface"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(home / "assets"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(hub_module, "_unreachable", {})
    monkeypatch.setattr(hub_module, "_warned", set())
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    return home / "hub"


def use_endpoint(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """Let huggingface-hub connect to an address, as HF_ENDPOINT does in a new process."""
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def hub(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A stand-in of the hub, to which huggingface-hub connects, with an empty cache."""
    with running_hub() as server:
        use_endpoint(monkeypatch, server.endpoint)
        yield server


@pytest.fixture
def no_network(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An address that refuses connections in the place of the hub. Returns the empty cache."""
    use_endpoint(monkeypatch, "http://127.0.0.1:9")
    return hub_cache


def write_to_cache(cache: Path, name: str, files: dict[str, bytes], ref: str = "main") -> Path:
    """Write a model to the cache of huggingface-hub as a download does; return its folder."""
    repository = cache / f"models--{name.replace('/', '--')}"
    commit = "1" * 40
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / ref).write_text(commit)
    for path, content in files.items():
        (snapshot / path).write_bytes(content)
    return snapshot
