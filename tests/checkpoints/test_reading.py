"""Checkpoints of all containers, and that nothing in them is executed."""

from __future__ import annotations

import json
import os
import pickle
import sys
import types
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from groupdetr.checkpoints.reading import open_checkpoint
from groupdetr.errors import WeightsError
from groupdetr.weights.conversion import convert_checkpoint


class CreatesFolder:
    """A pickle that creates a folder when it is loaded without restrictions."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("position", ["args", "model", "inside args", "bare"])
def test_code_in_a_checkpoint_is_refused_and_not_executed(position: str, tmp_path: Path) -> None:
    trap, path = CreatesFolder(tmp_path / "executed"), tmp_path / "trap.pth"
    contents = {
        "args": {"model": {}, "args": trap},
        "model": {"model": trap},
        "inside args": {"model": {"a": torch.zeros(1)}, "args": Namespace(lr=trap)},
        "bare": trap,
    }
    torch.save(contents[position], path)
    with pytest.raises(WeightsError, match="mkdir"):
        open_checkpoint(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("position", ["bare", "beside", "model", "inside model", "elements"])
def test_code_in_a_plain_pickle_is_refused_and_not_executed(position: str, tmp_path: Path) -> None:
    trap, path = CreatesFolder(tmp_path / "executed"), tmp_path / "trap.pkl"
    contents = {
        "bare": trap,
        "beside": {"model": {"a": np.ones(2)}, "__author__": trap},
        "model": {"model": trap},
        "inside model": {"model": {"a": np.ones(2), "b": trap}},
        "elements": {"model": {"a": np.array([trap, 1], dtype=object)}},
    }
    for protocol in (0, 2, 4):
        path.write_bytes(pickle.dumps(contents[position], protocol))
        with pytest.raises(WeightsError, match="mkdir" if protocol else None):
            open_checkpoint(path)
        assert not (tmp_path / "executed").exists()


def test_the_trap_works_without_restrictions(tmp_path: Path) -> None:
    torch.save(CreatesFolder(tmp_path / "executed"), tmp_path / "trap.pth")
    torch.load(tmp_path / "trap.pth", weights_only=False)
    assert (tmp_path / "executed").exists()


def test_a_namespace_of_plain_values_is_read(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    args = Namespace(lr=1e-4, dilation=True, device="cuda", masks=None, scales=[480, 800])
    torch.save({"model": {"a": torch.ones(2)}, "args": args, "epoch": 49}, path)
    checkpoint = open_checkpoint(path)
    assert checkpoint.metadata == vars(args)
    assert torch.equal(checkpoint.state["a"], torch.ones(2))


class HistoryBuffer:
    """Like mmengine's class: it is pickled with its own functions, which are found by name."""

    def __init__(self) -> None:
        self.losses = np.array([0.5, 0.25])

    def mean(self) -> float:
        return float(self.losses.mean())

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "statistics_methods": {"mean": HistoryBuffer.mean}}


def test_the_logs_of_mmengine_beside_the_weights_are_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = "mmengine.logging.history_buffer"
    for name in ("mmengine", "mmengine.logging", module):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    vars(sys.modules[module])["HistoryBuffer"] = HistoryBuffer
    monkeypatch.setattr(HistoryBuffer, "__module__", module)
    monkeypatch.setattr(HistoryBuffer.mean, "__module__", module)
    hub = {
        "log_scalars": {"train/loss": HistoryBuffer()},
        "runtime_info": {"loss": np.float64(0.25), "iter": 2},
    }
    content = {
        "meta": {"mmengine_version": "0.10.7"},
        "state_dict": {"a": torch.ones(2)},
        "message_hub": hub,
    }
    torch.save(content, tmp_path / "epoch_1.pth")
    names = torch.serialization.get_unsafe_globals_in_checkpoint(str(tmp_path / "epoch_1.pth"))
    assert {f"{module}.HistoryBuffer", "builtins.getattr"} <= set(names)
    checkpoint = open_checkpoint(tmp_path / "epoch_1.pth")
    assert torch.equal(checkpoint.state["a"], torch.ones(2))
    assert checkpoint.metadata == content["meta"]


ARRAYS = {
    "float": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3),
    "half": np.ones((1, 2, 1, 2), dtype=np.float16),
    "column-major": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "count": np.array(7),
    "empty": np.zeros((0, 4), dtype=np.float32),
    "flags": np.array([True, False]),
    "bytes": np.arange(256, dtype=np.uint8),
    "big-endian": np.array([1.5, -2.0], dtype=">f4"),
}


def test_arrays_in_a_plain_pickle_are_read(tmp_path: Path) -> None:
    """detectron2 writes its checkpoints like this."""
    content = {"model": ARRAYS, "__author__": "third_party", "matching_heuristics": True}
    for protocol in (2, 3, 4, 5):
        (tmp_path / "model_final.pkl").write_bytes(pickle.dumps(content, protocol))
        checkpoint = open_checkpoint(tmp_path / "model_final.pkl")
        assert checkpoint.metadata == {}
        assert checkpoint.state.keys() == ARRAYS.keys()
        for name, array in ARRAYS.items():
            expected = torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
            assert checkpoint.state[name].dtype == expected.dtype
            assert torch.equal(checkpoint.state[name], expected)


def test_arrays_of_numpy_1_are_read(tmp_path: Path) -> None:
    """Its modules have other names, and pickles of protocol 2 contain the names as plain text."""
    content = pickle.dumps({"model": ARRAYS}, protocol=2).replace(b"numpy._core", b"numpy.core")
    (tmp_path / "model_final.pkl").write_bytes(content)
    assert b"numpy.core.multiarray\n_reconstruct" in content
    assert open_checkpoint(tmp_path / "model_final.pkl").state["float"].shape == (2, 3)


def test_tensors_read_from_arrays_can_be_modified(tmp_path: Path) -> None:
    """They are copies and not views of the file's bytes."""
    (tmp_path / "model_final.pkl").write_bytes(
        pickle.dumps({"model": {"a": np.zeros(3)}}, protocol=2)
    )
    tensor = open_checkpoint(tmp_path / "model_final.pkl").state["a"]
    assert torch.equal(tensor + 1, tensor.add_(1))


@pytest.mark.parametrize(
    "array", [np.array([{}, []], dtype=object), np.array(["a"]), np.zeros(2, dtype=complex)]
)
def test_arrays_of_anything_but_numbers_are_refused(array: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "odd.pkl").write_bytes(pickle.dumps({"model": {"a": array}}))
    with pytest.raises(WeightsError, match=f"unsupported elements .{array.dtype.kind}"):
        open_checkpoint(tmp_path / "odd.pkl")


def test_the_container_is_recognised_by_content_and_not_by_name(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "one.safetensors")
    save_file({"a": torch.ones(2)}, tmp_path / "two.pth")
    for name in ("one.safetensors", "two.pth"):
        checkpoint = open_checkpoint(tmp_path / name)
        assert checkpoint.state.keys() == {"a"}
        assert checkpoint.metadata == {}


@pytest.mark.parametrize("content", ["tensor", "list", "number inside"])
def test_files_without_named_tensors_are_refused(content: str, tmp_path: Path) -> None:
    contents = {
        "tensor": torch.ones(2),
        "list": [1, 2],
        "number inside": {"model": {"lr": 0.1, "a": torch.ones(1)}},
    }
    torch.save(contents[content], tmp_path / "odd.pth")
    with pytest.raises(WeightsError, match=r"no named tensors|not tensors: lr"):
        open_checkpoint(tmp_path / "odd.pth")


def test_the_error_for_a_missing_file_names_it(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no such weights file\n.*nowhere\.pth"):
        open_checkpoint(tmp_path / "nowhere.pth")


def test_the_error_for_a_truncated_file_names_it(tmp_path: Path) -> None:
    path = tmp_path / "truncated.pth"
    torch.save({"model": {"a": torch.ones(1000)}}, path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(WeightsError, match=r"damaged.*\n.*truncated\.pth"):
        open_checkpoint(path)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    tail=st.binary(max_size=60),
    head=st.sampled_from(
        [b"", b"PK\x03\x04", b"\x80\x02", b"\x80\x02}q\x00", b"\x02\0\0\0\0\0\0\0{"]
    ),
)
def test_any_bytes_give_a_weights_error(tail: bytes, head: bytes, tmp_path: Path) -> None:
    path = tmp_path / "any.pth"
    path.write_bytes(head + tail)
    with pytest.raises(WeightsError):
        convert_checkpoint(path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_of_transformers_is_read_with_its_configuration(name: str, tmp_path: Path) -> None:
    save = save_file if name.endswith("safetensors") else torch.save
    save({"a": torch.ones(2)}, tmp_path / name)
    (tmp_path / "config.json").write_text(json.dumps({"num_queries": 300}))
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.metadata == {"num_queries": 300}
    assert checkpoint.state.keys() == {"a"}


def test_a_folder_without_weights_or_with_a_broken_configuration_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"lacks config\.json and model\.safetensors"):
        open_checkpoint(tmp_path)
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(WeightsError, match=r"config\.json"):
        open_checkpoint(tmp_path)
