"""Which commands read annotations from the cache folder, and that --no-cache reads the file."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from groupdetr.cli.main import main
from groupdetr.data import coco
from tests.runs import train


class FromCache(Exception):
    """The cache folder was asked for annotations."""


class FromFile(Exception):
    """An annotation file was read without the cache folder."""


@pytest.fixture(scope="module")
def run(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(shapes, tmp_path_factory.mktemp("runs") / "run", "--steps", "2")


COMMANDS = {
    "val": "val RUN --out OUT",
    "val of other data": "val RUN --data FILE --images IMAGES --out OUT",
    "groups": "groups RUN --out OUT",
    "groups of other data": "groups RUN --data FILE --images IMAGES --out OUT",
    "check": "check DATA",
    "compare": "compare RUN SECOND --out OUT",
    "ui": "ui RUN --data FILE --images IMAGES --port 0",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_uses_the_cache_unless_told_otherwise(
    command: str, run: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if command == "ui":
        pytest.importorskip("starlette")
    second = tmp_path / "second"
    if command == "compare":
        shutil.copytree(run, second)
    names = {
        "RUN": run,
        "SECOND": second,
        "DATA": shapes,
        "FILE": shapes / "annotations/instances_train.json",
        "IMAGES": shapes / "images/train",
        "OUT": tmp_path / "out",
    }
    arguments = [str(names.get(word, word)) for word in COMMANDS[command].split()]

    def from_cache(*_: object) -> None:
        raise FromCache

    def from_file(*_: object) -> None:
        raise FromFile

    # Both end the command before it does anything else.
    monkeypatch.setattr(coco, "cached", from_cache)
    monkeypatch.setattr(coco, "_read", from_file)
    with pytest.raises(FromCache):
        main(arguments)
    with pytest.raises(FromFile):
        main([*arguments, "--no-cache"])
