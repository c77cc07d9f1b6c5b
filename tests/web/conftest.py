"""A run with two groups and its page, which all tests of the page share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import groupdetr
from groupdetr.web.server import WebServer
from tests.runs import train


@pytest.fixture(scope="session")
def run(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run with two groups."""
    return train(shapes, tmp_path_factory.mktemp("ui") / "run", "--steps", "4")


@pytest.fixture(scope="session")
def server(run: Path) -> Iterator[WebServer]:
    """The running page of the run, with its validation set."""
    with groupdetr.ui(run, port=0, device="cpu") as page:
        validation = page.session.validation
        assert validation is not None
        validation.start()
        assert validation._thread is not None
        validation._thread.join()
        assert validation.state == "done", validation.error
        yield page
