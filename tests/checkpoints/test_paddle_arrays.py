"""Files of `paddle.save` are read: named arrays, and what PaddlePaddle adds to them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from groupdetr.checkpoints.reading import open_checkpoint
from groupdetr.errors import WeightsError
from tests.weights.paddle import NAMES_IN_PROGRAM, write_pdparams

ARRAYS = {
    "conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
    "norm._mean": np.ones(3, dtype=np.float32),
}
SLICES = "UnpackBigParamInfor@@"
FLAT = np.arange(6, dtype=np.float32)


def test_arrays_are_read_without_the_table_of_names(tmp_path: Path) -> None:
    for protocol in (2, 3, 4, 5):
        checkpoint = open_checkpoint(write_pdparams(tmp_path / "a.pdparams", ARRAYS, protocol))
        assert checkpoint.state.keys() == ARRAYS.keys()
        assert checkpoint.metadata == {}
        for name, array in ARRAYS.items():
            assert torch.equal(checkpoint.state[name], torch.from_numpy(array))


def test_an_entry_of_that_name_that_is_no_table_of_names_is_refused(tmp_path: Path) -> None:
    for table in ({"a": 1}, {1: "a"}, ["a"], "a"):
        (tmp_path / "a.pdparams").write_bytes(pickle.dumps({**ARRAYS, NAMES_IN_PROGRAM: table}))
        with pytest.raises(WeightsError, match=f"not tensors: {NAMES_IN_PROGRAM}"):
            open_checkpoint(tmp_path / "a.pdparams")


def test_slices_of_a_large_array_are_joined(tmp_path: Path) -> None:
    """Before protocol 4, arrays of more than a gigabyte are written as slices."""
    description = {"OriginShape": (2, 3), "slices": ["w@@.0", "w@@.1"]}
    arrays = {**ARRAYS, "w@@.0": FLAT[:4], "w@@.1": FLAT[4:], SLICES: {"w": description}}
    state = open_checkpoint(write_pdparams(tmp_path / "a.pdparams", arrays, 2)).state
    assert state.keys() == {*ARRAYS, "w"}
    assert state["w"].tolist() == FLAT.reshape(2, 3).tolist()


def test_slices_that_are_not_an_array_are_refused(tmp_path: Path) -> None:
    descriptions: list[Any] = [
        {"OriginShape": (2, 3), "slices": ["w@@.0", "w@@.1"]},  # the second one is not there
        {"OriginShape": (2, 3), "slices": ["w@@.0", "w@@.0"]},
        {"OriginShape": (7, 7), "slices": ["w@@.0"]},
        {"OriginShape": ("a", 3), "slices": ["w@@.0"]},
        {"OriginShape": (2, 3), "slices": []},
        {"slices": ["w@@.0"]},
        ["w@@.0"],
    ]
    for description in descriptions:
        arrays = {**ARRAYS, "w@@.0": FLAT, SLICES: {"w": description}}
        file = write_pdparams(tmp_path / "a.pdparams", arrays, 2)
        with pytest.raises(WeightsError, match="'w' is cut into slices, and they are not complete"):
            open_checkpoint(file)


def test_bfloat16_is_refused_by_the_names_of_its_arrays(tmp_path: Path) -> None:
    """numpy has no such type, so PaddlePaddle writes its bits as unsigned numbers."""
    arrays = {**ARRAYS, "linear.weight": np.ones((2, 2), dtype=np.uint16)}
    file = write_pdparams(tmp_path / "a.pdparams", arrays)
    with pytest.raises(WeightsError, match=r"these arrays are in bfloat16.*: linear\.weight"):
        open_checkpoint(file)
