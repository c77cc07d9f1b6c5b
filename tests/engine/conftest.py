"""Fixtures of the tests of the training loop."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest


@pytest.fixture(autouse=True, scope="module")
def _empty_pages(empty_pages: None) -> None:
    """Let all trainings write empty pages. What is on a page is not the engine's."""


@pytest.fixture(scope="session")
def few_objects(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 8 training images, of which one has one object and the others have none."""
    folder = tmp_path_factory.mktemp("few-objects") / "data"
    shutil.copytree(shapes, folder)
    file = folder / "annotations/instances_train.json"
    content = json.loads(file.read_text())
    content["annotations"] = content["annotations"][:1]
    with_object = content["annotations"][0]["image_id"]
    images = sorted(content["images"], key=lambda image: image["id"] != with_object)
    content["images"] = images[:8]
    file.write_text(json.dumps(content))
    return folder
