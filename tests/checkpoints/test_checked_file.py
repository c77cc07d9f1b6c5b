"""The checksum of a checkpoint: every change of the file is noticed, and torch reads it as ever."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from groupdetr.checkpoints import checked_file
from groupdetr.checkpoints.checked_file import DamagedError

WEIGHTS = torch.arange(500.0)
CONTENT = {"weights": WEIGHTS, "step": 3}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "last.pt"
    with path.open("w+b") as opened:
        checked_file.save(CONTENT, opened)
    return path


def test_a_whole_file_passes_and_torch_reads_it(file: Path) -> None:
    checked_file.check(file)
    assert torch.load(file, weights_only=True)["step"] == 3


def test_every_flipped_bit_is_noticed(file: Path) -> None:
    content = file.read_bytes()
    rng = random.Random(0)
    end = range(len(content) - 150, len(content))  # the directory of the archive, and the checksum
    for position in [*end, *rng.sample(range(len(content)), 300)]:
        changed = bytearray(content)
        changed[position] ^= 1 << rng.randrange(8)
        file.write_bytes(changed)
        with pytest.raises(DamagedError):
            checked_file.check(file)


def test_a_file_that_was_cut_off_is_noticed(file: Path) -> None:
    content = file.read_bytes()
    for size in [0, 1, 22, 80, 81, len(content) // 2, *range(len(content) - 110, len(content))]:
        file.write_bytes(content[:size])
        with pytest.raises(DamagedError):
            checked_file.check(file)


def test_a_file_of_torch_without_our_checksum_is_checked_by_those_of_its_archive(
    tmp_path: Path,
) -> None:
    path = tmp_path / "last.pt"
    torch.save(CONTENT, path)
    checked_file.check(path)
    content = bytearray(path.read_bytes())
    content[content.index(WEIGHTS.numpy().tobytes()) + 40] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedError):
        checked_file.check(path)
