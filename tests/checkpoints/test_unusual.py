"""Unusual checkpoints: what is beside the tensors, several sets of weights, several files."""

from __future__ import annotations

import collections
import datetime
import decimal
import enum
import functools
import json
import pickle
import random
import sys
import tarfile
import types
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from groupdetr.checkpoints.file_format import KEY, file_stamp
from groupdetr.checkpoints.reading import open_checkpoint
from groupdetr.errors import WeightsError
from tests.runs import is_identical

STATE = {"a": torch.arange(3.0), "b": torch.ones(2, 2)}


class Config(dict):  # type: ignore[type-arg]
    """Like the configurations of yacs, mmengine and Lightning, which are derived from dict."""


class ConfigWithState(dict):  # type: ignore[type-arg]
    def __init__(self) -> None:
        super().__init__(lr=1.0)
        self.frozen = True


class Schedule(list):  # type: ignore[type-arg]
    pass


class Logger:
    def __init__(self) -> None:
        self.files, self.settings = {Path("log.txt")}, Config(a=Schedule([1]))


class Slots:
    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 1


class Mode(enum.Enum):
    TRAIN = "train"


class Sizes(NamedTuple):
    height: int
    width: int


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)


CLASSES = (Config, ConfigWithState, Schedule, Logger, Slots, Mode, Sizes, Network)
OBJECTS: dict[str, Callable[[], object]] = {
    "path": lambda: Path("/home/somebody/output"),
    "path of Windows": lambda: PureWindowsPath("C:/output"),
    "namespace": lambda: Namespace(output_dir=Path("x"), nested=Namespace(a=1)),
    "date": datetime.datetime.now,
    "decimal": lambda: decimal.Decimal("0.1"),
    "number of NumPy": lambda: np.float64(0.5),
    "array": lambda: np.ones(3),
    "dict of a class": lambda: Config(a=1, b=Config(c=Path("x"))),
    "dict of a class with state": ConfigWithState,
    "list of a class": lambda: Schedule([1, 2]),
    "object": Logger,
    "object with slots": Slots,
    "constant": lambda: Mode.TRAIN,
    "named tuple": lambda: Sizes(1, 2),
    "function": lambda: Logger.__init__,
    "class": lambda: Logger,
    "partial": lambda: functools.partial(Logger, 1),
    "set": lambda: {1, 2},
    "deque": lambda: collections.deque([1, 2], maxlen=5),
    "default dict": lambda: collections.defaultdict(list, a=[1]),
    "counter": lambda: collections.Counter("ab"),
    "number without end": lambda: 10**100,
    "module": Network,
    "all at once": lambda: [Logger(), {"a": (Config(), Schedule([Slots()]))}, Mode.TRAIN],
}


@pytest.fixture(autouse=True)
def _module_of_another_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """The classes above are those of a program that is not installed where the file is read."""
    module = types.ModuleType("their_program.training")
    monkeypatch.setitem(sys.modules, "their_program", types.ModuleType("their_program"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for kind in CLASSES:
        setattr(module, kind.__name__, kind)
        monkeypatch.setattr(kind, "__module__", module.__name__)


def is_equal(state: dict[str, Tensor]) -> bool:
    return state.keys() == STATE.keys() and all(torch.equal(state[n], STATE[n]) for n in STATE)


def write(path: Path, content: dict[str, Any], container: str) -> None:
    """Write a file of torch, one as torch wrote before 1.6, or a pickle of arrays."""
    if container == "pickle":
        arrays = {name: value.numpy() for name, value in STATE.items()}
        path.write_bytes(pickle.dumps({**content, "model": arrays}, 2))
    else:
        is_new = container == "torch"
        torch.save({**content, "model": STATE}, path, _use_new_zipfile_serialization=is_new)


@pytest.mark.parametrize("container", ["torch", "legacy", "pickle"])
def test_objects_beside_the_weights_are_ignored(container: str, tmp_path: Path) -> None:
    for kind, create in OBJECTS.items():
        if kind == "module" and container != "torch":
            continue  # Its tensors are refused there.
        for key in ("args", "config"):
            write(tmp_path / "x.pth", {key: create(), "epoch": 3}, container)
            assert is_equal(open_checkpoint(tmp_path / "x.pth").state), (kind, key)


@pytest.mark.parametrize("protocol", [4, 5])
def test_objects_in_newer_pickles_are_ignored(protocol: int, tmp_path: Path) -> None:
    arrays = {name: value.numpy() for name, value in STATE.items()}
    objects = [create() for kind, create in OBJECTS.items() if kind != "module"]
    content = {"model": arrays, "config": objects}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, protocol))
    assert is_equal(open_checkpoint(tmp_path / "x.pkl").state)


def test_plain_values_beside_objects_are_kept(tmp_path: Path) -> None:
    args = Namespace(lr=1e-4, output_dir=Path("x"), dilation=True)
    torch.save({"model": STATE, "args": args}, tmp_path / "x.pth")
    metadata = open_checkpoint(tmp_path / "x.pth").metadata
    assert (metadata["lr"], metadata["dilation"]) == (1e-4, True)


class Runs:
    """A pickle that runs a function when it is loaded without restrictions."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.function, self.arguments


@pytest.mark.parametrize("container", ["torch", "legacy", "pickle"])
def test_code_beside_objects_is_refused(container: str, tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    for function in (eval, exec, __import__, open, print):
        trap = Runs(function, str(tmp_path / "executed"))
        write(path, {"config": [Logger(), trap]}, container)
        with pytest.raises(WeightsError, match=f"asks to run .*{function.__name__}"):
            open_checkpoint(path)
        assert not (tmp_path / "executed").exists()


def test_the_error_for_a_whole_network_names_its_class(tmp_path: Path) -> None:
    torch.save(Network(), tmp_path / "bare.pth")
    torch.save({"model": Network(), "epoch": 3}, tmp_path / "inside.pth")
    for name in ("bare.pth", "inside.pth"):
        with pytest.raises(WeightsError, match=r"their_program\.training\.Network") as refused:
            open_checkpoint(tmp_path / name)
        assert "state_dict()" in refused.value.remedy


# several sets of weights


AVERAGE = {name: value + 1 for name, value in STATE.items()}


def test_a_moving_average_beside_the_weights_is_reported(tmp_path: Path) -> None:
    for key in ("ema", "model_ema", "ema_model", "ema_state_dict", "swa"):
        torch.save({"model": STATE, key: AVERAGE}, tmp_path / "x.pth")
        checkpoint = open_checkpoint(tmp_path / "x.pth")
        assert is_equal(checkpoint.state), key
        (note,) = checkpoint.notes
        assert f"'{key}' (a moving average)" in note
        assert f"--entry {key}" in note
        assert torch.equal(open_checkpoint(tmp_path / "x.pth", key).state["a"], AVERAGE["a"])


@pytest.mark.parametrize("content", [{"ema": {"module": STATE}}, {"net": STATE}, {"ema": STATE}])
def test_the_only_weights_are_loaded_wherever_they_are(content: Any, tmp_path: Path) -> None:
    optimizer = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1.0}]}
    torch.save({**content, "optimizer": optimizer, "step": torch.tensor(3)}, tmp_path / "x.pth")
    checkpoint = open_checkpoint(tmp_path / "x.pth")
    assert is_equal(checkpoint.state)
    assert checkpoint.notes == ()


def test_several_sets_of_weights_without_a_usual_name_are_refused(tmp_path: Path) -> None:
    torch.save({"generator": STATE, "detector": AVERAGE}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="several sets of weights: generator, detector"):
        open_checkpoint(tmp_path / "x.pth")
    assert is_equal(open_checkpoint(tmp_path / "x.pth", "generator").state)
    with pytest.raises(WeightsError, match=r"no weights under 'x'(.|\n)*generator, detector"):
        open_checkpoint(tmp_path / "x.pth", "x")


def test_the_state_of_a_training_is_marked(tmp_path: Path) -> None:
    torch.save({KEY: file_stamp(), "model": STATE, "ema": None}, tmp_path / "last.pt")
    assert open_checkpoint(tmp_path / "last.pt").is_training_state


# several files


@pytest.fixture(params=[".safetensors", ".bin"])
def sharded(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder of transformers whose weights are in two files."""
    end = request.param
    stem = "model" if end == ".safetensors" else "pytorch_model"
    names = {name: f"{stem}-{i + 1:05}-of-00002{end}" for i, name in enumerate(STATE)}
    for name, file in names.items():
        save = save_file if end == ".safetensors" else torch.save
        save({name: STATE[name]}, tmp_path / file)
    index = {"metadata": {"total_size": 28}, "weight_map": names}
    (tmp_path / f"{stem}{end}.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "x"}))
    return tmp_path


def test_weights_in_several_files_are_read_together(sharded: Path) -> None:
    checkpoint = open_checkpoint(sharded)
    assert is_equal(checkpoint.state)
    assert checkpoint.metadata == {"model_type": "x"}


def test_one_of_several_files_is_recognised(sharded: Path) -> None:
    file = next(sharded.glob("*-00002-of-*"))
    with pytest.raises(WeightsError, match="only number 2 of 2") as refused:
        open_checkpoint(file)
    assert str(sharded) in refused.value.remedy
    with pytest.raises(WeightsError, match="divided into several files"):
        open_checkpoint(next(sharded.glob("*.index.json")))


def test_a_file_that_is_missing_is_named(sharded: Path) -> None:
    file = next(sharded.glob("*-00002-of-*"))
    file.unlink()
    with pytest.raises(WeightsError, match=f"not in the folder: '{file.name}'"):
        open_checkpoint(sharded)


def test_an_index_leads_out_of_no_folder(sharded: Path) -> None:
    save_file(STATE, sharded.parent / "x.safetensors")
    index = next(sharded.glob("*.index.json"))
    for name in ("../x.safetensors", "/etc/passwd", "a/b.bin", "..", "", 3):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(WeightsError, match="not in the folder"):
            open_checkpoint(sharded)


def test_an_index_of_any_content_is_refused(sharded: Path) -> None:
    for content in ("{", "[]", '{"weight_map": []}', "[" * 10**5, "\xff"):
        next(sharded.glob("*.index.json")).write_bytes(content.encode("latin1"))
        with pytest.raises(WeightsError, match=r"index\.json"):
            open_checkpoint(sharded)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_pointers_in_a_folder_of_transformers_are_named(name: str, tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\nsize 9\n")
    with pytest.raises(WeightsError, match="Git LFS pointer") as refused:
        open_checkpoint(tmp_path)
    assert refused.value.where == str(tmp_path / name)


def test_folders_of_other_programs_are_recognised(tmp_path: Path) -> None:
    for names, message in (
        ((".metadata", "__0_0.distcp"), "distributed checkpoint of torch"),
        (("latest", "zero_to_fp32.py"), "DeepSpeed"),
        (("weights.pth", "notes.txt"), r"one of its files: weights\.pth"),
    ):
        folder = tmp_path / names[0].strip(".")
        folder.mkdir()
        for name in names:
            (folder / name).touch()
        with pytest.raises(WeightsError, match=message):
            open_checkpoint(folder)


@pytest.mark.parametrize("folder", ["run", "run/weights"])
def test_a_run_is_read_by_its_best_weights(folder: str, tmp_path: Path) -> None:
    (tmp_path / "run/weights").mkdir(parents=True)
    (tmp_path / "run/config.yaml").touch()
    with pytest.raises(WeightsError, match=r"no weights yet|not a checkpoint"):
        open_checkpoint(tmp_path / folder)
    save_file(STATE, tmp_path / "run/weights/best.safetensors")
    assert is_equal(open_checkpoint(tmp_path / folder).state)


# tensors


TENSORS = {
    "repeats a few bytes": torch.zeros(1).expand(2**20, 2**10),
    "without values": torch.empty(2**40, device="meta"),
    "sparse": torch.eye(3).to_sparse(),
    "quantised": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8),
    "of eight bits": torch.ones(3).to(torch.float8_e4m3fn),
    "complex": torch.ones(3, dtype=torch.complex64),
}


def test_tensors_that_are_not_plain_numbers_are_refused(tmp_path: Path) -> None:
    for tensor in TENSORS.values():
        torch.save({"model": {**STATE, "odd": tensor}}, tmp_path / "x.pth")
        with pytest.raises(WeightsError, match=r"odd|bytes in memory"):
            open_checkpoint(tmp_path / "x.pth")


def test_a_file_of_too_many_tensors_is_refused(tmp_path: Path) -> None:
    one = torch.zeros(1)
    save_file({f"{i}": one.clone() for i in range(2**15 + 1)}, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match="32769 tensors"):
        open_checkpoint(tmp_path / "x.safetensors")


@pytest.mark.parametrize("with_checksums", [True, False])
def test_no_flipped_bit_of_a_file_of_torch_changes_a_number(
    with_checksums: bool, tmp_path: Path
) -> None:
    """torch.load does not compare the checksums, which torch.save may also leave out."""
    path = tmp_path / "x.pth"
    state = {f"{name}.weight": torch.randn(20, 20) for name in "abcdef"}
    torch.serialization.set_crc32_options(with_checksums)
    try:
        torch.save({"model": state}, path)
    finally:
        torch.serialization.set_crc32_options(True)
    content = path.read_bytes()
    assert is_identical(open_checkpoint(path).state, state)
    if not with_checksums:
        return
    generator = random.Random(0)
    for _ in range(60):
        damaged = bytearray(content)
        damaged[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        path.write_bytes(bytes(damaged))
        try:
            checkpoint = open_checkpoint(path)
        except WeightsError:
            continue
        assert is_identical(checkpoint.state, state)


def test_a_tar_archive_with_a_checkpoint_at_its_end_is_an_archive(tmp_path: Path) -> None:
    torch.save({"model": {"a.weight": torch.ones(2)}}, tmp_path / "x.pth")
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(tmp_path / "x.pth", "x.pth")
    with pytest.raises(WeightsError, match="a tar archive"):
        open_checkpoint(tmp_path / "x.tar")
