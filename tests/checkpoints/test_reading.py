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

from groupdetr.checkpoints.reading import LOGGED, open_checkpoint
from groupdetr.errors import WeightsError
from groupdetr.weights.loading import translate


class Runs:
    """A pickle that makes a folder when it is loaded by a reader who trusts it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("place", ["args", "model", "inside args", "bare"])
def test_code_in_a_checkpoint_is_refused_and_not_run(place: str, tmp_path: Path) -> None:
    trap, path = Runs(tmp_path / "ran"), tmp_path / "trap.pth"
    contents = {
        "args": {"model": {}, "args": trap},
        "model": {"model": trap},
        "inside args": {"model": {"a": torch.zeros(1)}, "args": Namespace(lr=trap)},
        "bare": trap,
    }
    torch.save(contents[place], path)
    with pytest.raises(WeightsError, match="mkdir"):
        open_checkpoint(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("place", ["bare", "beside", "model", "inside model", "elements"])
def test_code_in_a_plain_pickle_is_refused_and_not_run(
    place: str, protocol: int, tmp_path: Path
) -> None:
    trap, path = Runs(tmp_path / "ran"), tmp_path / "trap.pkl"
    contents = {
        "bare": trap,
        "beside": {"model": {"a": np.ones(2)}, "__author__": trap},
        "model": {"model": trap},
        "inside model": {"model": {"a": np.ones(2), "b": trap}},
        "elements": {"model": {"a": np.array([trap, 1], dtype=object)}},
    }
    path.write_bytes(pickle.dumps(contents[place], protocol))
    with pytest.raises(WeightsError, match="mkdir" if protocol else None):
        open_checkpoint(path)
    assert not (tmp_path / "ran").exists()


def test_the_trap_works_on_those_who_trust_it(tmp_path: Path) -> None:
    torch.save(Runs(tmp_path / "ran"), tmp_path / "trap.pth")
    torch.load(tmp_path / "trap.pth", weights_only=False)
    assert (tmp_path / "ran").exists()


def test_a_namespace_of_plain_values_is_read(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    args = Namespace(lr=1e-4, dilation=True, device="cuda", masks=None, scales=[480, 800])
    torch.save({"model": {"a": torch.ones(2)}, "args": args, "epoch": 49}, path)
    checkpoint = open_checkpoint(path)
    assert checkpoint.facts == vars(args)
    assert torch.equal(checkpoint.state["a"], torch.ones(2))


class HistoryBuffer:
    """As mmengine's: pickled with functions of its own, looked up by name."""

    def __init__(self) -> None:
        self.losses = np.array([0.5, 0.25])

    def mean(self) -> float:
        return float(self.losses.mean())

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "statistics_methods": {"mean": HistoryBuffer.mean}}


def test_what_mmengine_logs_beside_the_weights_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = "mmengine.logging.history_buffer"
    for name in ("mmengine", "mmengine.logging", home):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    vars(sys.modules[home])["HistoryBuffer"] = HistoryBuffer
    monkeypatch.setattr(HistoryBuffer, "__module__", home)
    monkeypatch.setattr(HistoryBuffer.mean, "__module__", home)
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
    asked = torch.serialization.get_unsafe_globals_in_checkpoint(str(tmp_path / "epoch_1.pth"))
    assert {f"{home}.HistoryBuffer", "builtins.getattr"} <= set(asked) <= set(LOGGED)
    checkpoint = open_checkpoint(tmp_path / "epoch_1.pth")
    assert torch.equal(checkpoint.state["a"], torch.ones(2))
    assert checkpoint.facts == content["meta"]


ARRAYS = {
    "float": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3),
    "half": np.ones((1, 2, 1, 2), dtype=np.float16),
    "by columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "count": np.array(7),
    "empty": np.zeros((0, 4), dtype=np.float32),
    "flags": np.array([True, False]),
    "bytes": np.arange(256, dtype=np.uint8),
    "other end first": np.array([1.5, -2.0], dtype=">f4"),
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_in_a_plain_pickle_are_read(protocol: int, tmp_path: Path) -> None:
    """As detectron2 writes its checkpoints."""
    content = {"model": ARRAYS, "__author__": "third_party", "matching_heuristics": True}
    (tmp_path / "model_final.pkl").write_bytes(pickle.dumps(content, protocol))
    checkpoint = open_checkpoint(tmp_path / "model_final.pkl")
    assert checkpoint.facts == {}
    assert checkpoint.state.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        expected = torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
        assert checkpoint.state[name].dtype == expected.dtype
        assert torch.equal(checkpoint.state[name], expected)


def test_arrays_of_numpy_1_are_read(tmp_path: Path) -> None:
    """It has its parts in another place, and pickles of protocol 2 name them in plain text."""
    content = pickle.dumps({"model": ARRAYS}, protocol=2).replace(b"numpy._core", b"numpy.core")
    (tmp_path / "model_final.pkl").write_bytes(content)
    assert b"numpy.core.multiarray\n_reconstruct" in content
    assert open_checkpoint(tmp_path / "model_final.pkl").state["float"].shape == (2, 3)


def test_what_is_read_of_arrays_can_be_written_to(tmp_path: Path) -> None:
    """Tensors of their own, and not a view of the file's bytes."""
    (tmp_path / "model_final.pkl").write_bytes(
        pickle.dumps({"model": {"a": np.zeros(3)}}, protocol=2)
    )
    tensor = open_checkpoint(tmp_path / "model_final.pkl").state["a"]
    assert torch.equal(tensor + 1, tensor.add_(1))


@pytest.mark.parametrize(
    "odd", [np.array([{}, []], dtype=object), np.array(["a"]), np.zeros(2, dtype=complex)]
)
def test_arrays_of_other_things_than_numbers_are_refused(odd: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "odd.pkl").write_bytes(pickle.dumps({"model": {"a": odd}}))
    with pytest.raises(WeightsError, match=f"unsupported elements .{odd.dtype.kind}"):
        open_checkpoint(tmp_path / "odd.pkl")


def test_torchs_files_of_before_1_6_are_read(tmp_path: Path) -> None:
    """They are pickles, too."""
    torch.save(
        {"model": {"a": torch.ones(2)}}, tmp_path / "old.pth", _use_new_zipfile_serialization=False
    )
    assert torch.equal(open_checkpoint(tmp_path / "old.pth").state["a"], torch.ones(2))


def test_named_tensors_alone_are_read_and_say_nothing(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "weights.pt")
    checkpoint = open_checkpoint(tmp_path / "weights.pt")
    assert checkpoint.state.keys() == {"a"}
    assert checkpoint.facts == {}


def test_the_container_is_told_by_content_and_not_by_name(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "one.safetensors")
    save_file({"a": torch.ones(2)}, tmp_path / "two.pth")
    for name in ("one.safetensors", "two.pth"):
        assert open_checkpoint(tmp_path / name).state.keys() == {"a"}


@pytest.mark.parametrize("content", ["tensor", "list", "number inside"])
def test_what_is_no_state_is_named(content: str, tmp_path: Path) -> None:
    contents = {
        "tensor": torch.ones(2),
        "list": [1, 2],
        "number inside": {"model": {"lr": 0.1, "a": torch.ones(1)}},
    }
    torch.save(contents[content], tmp_path / "odd.pth")
    with pytest.raises(WeightsError, match=r"no named tensors|no tensors: lr"):
        open_checkpoint(tmp_path / "odd.pth")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no weights there\n.*nowhere\.pth"):
        open_checkpoint(tmp_path / "nowhere.pth")


def test_a_cut_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cut.pth"
    torch.save({"model": {"a": torch.ones(1000)}}, path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(WeightsError, match=r"damaged.*\n.*cut\.pth"):
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
def test_no_file_of_any_bytes_escapes_with_another_error(
    tail: bytes, head: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "any.pth"
    path.write_bytes(head + tail)
    with pytest.raises(WeightsError):
        translate(path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_of_transformers_is_read_with_its_configuration(name: str, tmp_path: Path) -> None:
    save = save_file if name.endswith("safetensors") else torch.save
    save({"a": torch.ones(2)}, tmp_path / name)
    (tmp_path / "config.json").write_text(json.dumps({"num_queries": 300}))
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.facts == {"num_queries": 300}
    assert checkpoint.state.keys() == {"a"}


def test_a_folder_without_weights_says_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"lacks config\.json and model\.safetensors"):
        open_checkpoint(tmp_path)


def test_a_folder_with_a_broken_configuration_is_named(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(WeightsError, match=r"config\.json"):
        open_checkpoint(tmp_path)
