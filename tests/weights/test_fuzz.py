"""Random content of checkpoints, of every layout, is refused with a message, or it is loaded.

No content raises another error than `GroupDETRError`, takes long, or makes a file that cannot be
opened.
"""

from __future__ import annotations

import functools
import json
import pickle
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from groupdetr.checkpoints.file_format import KEY, file_stamp
from groupdetr.checkpoints.layout import Layout
from groupdetr.checkpoints.native import unique_state
from groupdetr.checkpoints.reading import open_checkpoint
from groupdetr.errors import GroupDETRError
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.registry import experiment, recipe_to_dict
from groupdetr.tasks.detection2d.prediction import Detector
from groupdetr.weights.conversion import LAYOUTS
from groupdetr.weights.importing import import_weights
from groupdetr.weights.loading import load_weights
from tests.data.fuzzing import FUZZ
from tests.data.test_check import ANYTHING, mutate

from .inverted import invert

LIMIT = 30.0  # seconds of the processor; an example takes tenths of a second
PRESETS = {
    "the authors' DAB-DETR": "dab-detr-tiny",
    "the authors' DN-DETR": "dn-detr-tiny",
    "the authors' DINO": "dino-tiny",
    "the authors' DAB-Deformable-DETR": "dab-deformable-detr-tiny",
    "detrex's DINO": "dino-tiny",
    "PaddleDetection's Group DINO": "dino-vit-tiny",
    "Hugging Face's DAB-DETR": "dab-detr-tiny",
    "the authors' Mask2Former": "mask2former-tiny",
    "Hugging Face's Mask2Former": "mask2former-tiny",
    "the authors' PETR": "petr-tiny",
    "mmdet3d's PETR": "petr-tiny",
    "the authors' LW-DETR": "lw-detr-tiny",
    "Hugging Face's LW-DETR": "lw-detr-tiny",
    "Roboflow's RF-DETR": "rf-detr-micro",
    "Hugging Face's RF-DETR": "rf-detr-micro",
    "Hugging Face's RF-DETR in memory": "rf-detr-micro",
    "Roboflow's RF-DETR-Seg": "rf-detr-seg-micro",
    "Hugging Face's RF-DETR-Seg": "rf-detr-seg-micro",
}
# Entries of the metadata that the importers read, with values as the projects write them.
METADATA: dict[str, Any] = {
    "nheads": 2,
    "dropout": 0.0,
    "dilation": False,
    "dataset_file": "coco",
    "num_queries": 6,
    "group_detr": 1,
    "pe_temperatureH": 20,
    "pe_temperatureW": 20,
    "temperature_height": 20,
    "temperature_width": 20,
    "scalar": 5,
    "label_noise_scale": 0.2,
    "box_noise_scale": 0.4,
    "dn_number": 100,
    "dn_label_noise_ratio": 0.5,
    "dn_box_noise_scale": 1.0,
    "encoder_attention_heads": 2,
    "num_attention_heads": 2,
    "id2label": {"0": "bar", "1": "disc", "2": "ring"},
    "mmcv_version": "1.4.0",
    "imgsz": 64,
    "model_name": "RFDETRNano",
    "model_config": {"sa_nheads": 2, "ca_nheads": 4, "num_windows": 2, "resolution": 64},
    "class_names": ["bar", "disc", "ring"],
    "out_feature_indexes": [1, 3],
    "backbone_config": {"out_indices": [2, 4], "num_windows": 4},
}
ODD_VALUES = (
    ANYTHING
    | st.sampled_from([10**9, -(10**9), 2**40, 0, "x" * 5000, Path("x"), Namespace(a=1), b"x"])
    | st.sampled_from([torch.ones(2), np.float64(1), [[1]] * 3, {"a": {"b": 1}}, {1: 2}])
)
PREFIXES = ("module.", "model.", "_orig_mod.", "module._orig_mod.", "net.model.", "ema.")


@functools.cache
def small_model(title: str) -> DetectionTransformer:
    """Return a small model for files of a layout. Its weights may change."""
    recipe = experiment(PRESETS.get(title, "conditional-detr-tiny")).recipe
    sizes: dict[str, Any] = {"num_groups": 1, "num_queries": 6, "num_classes": 3}
    sizes |= {"channels": 32, "num_heads": 2, "decoder_layers": 2}
    if title == "detrex's DINO":
        sizes["shared_heads"] = False
    if title == "PaddleDetection's Group DINO":
        sizes |= {"shared_heads": False, "labels_per_group": True}
    if "LW-DETR" in title:
        sizes |= {"vit_width": 24, "vit_depth": 2, "global_blocks": (1,), "map_blocks": (0, 1)}
        sizes["dim_feedforward"] = 32
    torch.manual_seed(0)
    return recipe.with_options(**sizes).build()


@functools.cache
def their_state(title: str) -> dict[str, Tensor]:
    """Return the weights of the small model under the names of a layout."""
    (layout,) = (layout for layout in LAYOUTS if layout.title == title)
    state = invert(layout, small_model(title).state_dict())
    return {name: value.clone() for name, value in state.items()}


COMPLETE = [layout for layout in LAYOUTS if "Mask2Former" not in layout.title]
# The backbones of these are never as small as those of the models here.
COMPLETE = [layout for layout in COMPLETE if "PETR" not in layout.title]
COMPLETE = [layout for layout in COMPLETE if "detrex" not in layout.title]


@pytest.mark.parametrize("layout", COMPLETE, ids=lambda layout: layout.title)
def test_files_that_are_not_changed_are_loaded(layout: Layout, tmp_path: Path) -> None:
    """So the changes below are what is tested."""
    torch.save({"model": their_state(layout.title)}, tmp_path / "x.pth")
    model = small_model(layout.title)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    load_weights(model, tmp_path / "x.pth", layout=layout.title, file_groups=1)
    loaded = invert(layout, model.state_dict())
    for name, value in their_state(layout.title).items():
        assert torch.equal(loaded[name], value), name


# changes


def odd_tensor(tensor: Tensor, data: st.DataObject) -> object:
    """Return something else in the place of a tensor."""
    changes: dict[str, Callable[[], object]] = {
        "shape": lambda: torch.ones(data.draw(st.lists(st.integers(0, 9), max_size=5))),
        "transposed": lambda: tensor.T if tensor.ndim == 2 else tensor.flatten(),
        "larger": lambda: torch.cat([tensor, tensor]) if tensor.ndim else tensor,
        "scalar": lambda: torch.tensor(1.0),
        "empty": lambda: torch.zeros(0),
        "not finite": lambda: tensor * float("nan"),
        "repeated": lambda: torch.zeros(1).expand(2**16, 2**16),
        "half": lambda: tensor.half(),
        "integers": lambda: tensor.to(torch.uint8),
        "complex": lambda: tensor.to(torch.complex64),
        "eight bits": lambda: tensor.to(torch.float8_e4m3fn),
        "sparse": lambda: tensor.to_sparse() if tensor.ndim else tensor,
        "without values": lambda: tensor.to("meta"),
        "another value": lambda: data.draw(ODD_VALUES),
    }
    kind = data.draw(st.sampled_from([*changes]))
    event(kind)
    return changes[kind]()


def change_state(state: dict[Any, Any], data: st.DataObject) -> dict[Any, Any]:
    """Return named tensors with a random change."""
    name = data.draw(st.sampled_from([*state]))
    action = data.draw(st.sampled_from(["replace"] * 4 + ["delete", "rename", "add", "wrap"]))
    if action == "replace" and _can_be_written(state[name]):
        state[name] = odd_tensor(state[name], data)
    elif action == "delete":
        del state[name]
    elif action == "rename":
        new = data.draw(st.text(max_size=5) | st.sampled_from([*PREFIXES, f"{name}.x", 7, None]))
        state[new] = state.pop(name)
    elif action == "add":
        number = data.draw(st.sampled_from([0, 7, 999, 10**6]))
        state[f"transformer.decoder.layers.{number}.norm1.weight"] = torch.ones(32)
    else:
        prefix = data.draw(st.sampled_from(PREFIXES))
        part = data.draw(st.sampled_from([1.0, 1.0, 0.9]))
        names = [*state]
        for wrapped in names[: int(part * len(names))]:
            state[f"{prefix}{wrapped}"] = state.pop(wrapped)
    return state


def write(path: Path, state: dict[Any, Any], metadata: Any, data: st.DataObject) -> Path:
    """Write named tensors and metadata in one of the containers, if it can hold them."""
    kinds = ["torch", "torch", "legacy", "bare", "nested", "twice", "arrays", "transformers"]
    kind = data.draw(st.sampled_from(kinds))
    event(kind)
    key = data.draw(st.sampled_from(["args", "meta", "config"]))
    if kind == "transformers":
        path.mkdir(exist_ok=True)
        tensors = {str(k): v.contiguous() for k, v in state.items() if _can_be_written(v)}
        save_file(tensors, path / "model.safetensors")
        config = json.dumps(metadata, default=str, skipkeys=True)
        (path / "config.json").write_text(config, encoding="utf-8", errors="replace")
        return path
    if kind == "arrays":
        arrays = {k: v.numpy() if _can_be_written(v) else v for k, v in state.items()}
        protocol = data.draw(st.integers(2, 5))
        path.write_bytes(pickle.dumps({"model": arrays, key: metadata}, protocol))
        return path
    content: Any = {"model": state, key: metadata, "epoch": 3}
    if kind == "bare":
        content = state
    elif kind == "nested":
        content = {data.draw(st.sampled_from(["ema", "net", "state_dict"])): {"module": state}}
    elif kind == "twice":
        content["ema"] = {"module": state}
    torch.save(content, path, _use_new_zipfile_serialization=kind != "legacy")
    return path


def _is_name(key: object) -> bool:
    return isinstance(key, str)


def _can_be_written(value: object) -> bool:
    known = (torch.float32, torch.float16, torch.uint8)
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.dtype in known
        and (not value.is_meta and value.numel() < 2**20)
    )


@contextmanager
def within_limit() -> Iterator[None]:
    started = time.process_time()
    yield
    assert time.process_time() - started < LIMIT


@settings(**FUZZ)
@given(data=st.data())
def test_any_checkpoint_is_refused_or_loaded(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    title = data.draw(st.sampled_from([layout.title for layout in LAYOUTS]))
    event(title)
    state: dict[Any, Any] = dict(their_state(title))
    metadata: Any = dict(METADATA)
    for _ in range(data.draw(st.integers(0, 2))):
        state = change_state(state, data)
    for _ in range(data.draw(st.integers(0, 2))):
        if data.draw(st.integers(0, 9)) == 0:
            metadata = data.draw(ODD_VALUES)
        elif isinstance(metadata, dict):
            metadata[data.draw(st.sampled_from([*METADATA]))] = data.draw(ODD_VALUES)
    if isinstance(metadata, dict) and all(map(_is_name, metadata)) and data.draw(st.booleans()):
        metadata = Namespace(**metadata)
    path = write(folder / "x.pth", state, metadata, data)
    with within_limit():
        try:
            load_weights(small_model(title), path, new_head=True)
            event("loaded")
        except GroupDETRError as error:
            event(error.what[:20])
        if data.draw(st.integers(0, 4)) == 0:
            import_or_refuse(path, folder / "out.safetensors", PRESETS.get(title))


def import_or_refuse(path: Path, out: Path, preset: str | None) -> None:
    try:
        import_weights(path, out, preset or "conditional-detr-tiny")
    except GroupDETRError:
        return
    event("imported")
    checkpoint = open_checkpoint(out)
    assert all(value.isfinite().all() for value in checkpoint.state.values())
    if "petr" not in str(preset):
        Detector(out, "cpu", imgsz=64).predict(Image.new("RGB", (64, 64)))


# files of this library


@pytest.fixture(scope="module")
def native_metadata() -> dict[str, Any]:
    recipe = small_model("groupdetr").recipe
    return {
        **file_stamp(),
        "recipe": json.loads(json.dumps(recipe_to_dict(recipe))),  # type: ignore[arg-type]
        "categories": [[1, "bar"], [2, "disc"], [3, "ring"]],
        "imgsz": 64,
    }


@settings(**FUZZ)
@given(data=st.data())
def test_any_metadata_of_a_file_of_ours_is_refused_or_predicts(
    data: st.DataObject,
    native_metadata: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "best.safetensors"
    metadata = json.loads(json.dumps(native_metadata))
    for _ in range(data.draw(st.integers(1, 2))):
        if data.draw(st.booleans()):
            field = data.draw(st.sampled_from([*native_metadata["recipe"]]))
            if isinstance(metadata.get("recipe"), dict):
                metadata["recipe"][field] = data.draw(ANYTHING | st.sampled_from([10**9, 3, 1.5]))
        elif metadata:
            mutate(metadata, data)
    state = dict(unique_state(small_model("groupdetr")))
    if data.draw(st.integers(0, 3)) == 0:
        state = change_state(state, data)
    tensors = {str(k): v.contiguous() for k, v in state.items() if _can_be_written(v)}
    save_file(tensors, path, {KEY: json.dumps(metadata)})
    with within_limit():
        try:
            detector = Detector(path, "cpu", imgsz=64)
        except GroupDETRError as error:
            event(error.what[:20])
            return
        event("predicted")
        (result,) = detector.predict(Image.new("RGB", (80, 64)), score=0.0)
        assert len(result.names) == len(result.boxes)
        assert np.isfinite(result.boxes).all()


# bytes


@pytest.fixture(scope="module")
def containers(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """A small checkpoint in every container."""
    folder = tmp_path_factory.mktemp("containers")
    path = folder / "x"
    state = {"a.weight": torch.ones(3, 2), "a.bias": torch.zeros(3)}
    args = Namespace(lr=1.0, path=Path("x"), names=["a"])
    contents = []
    for new in (True, False):
        torch.save({"model": state, "args": args}, path, _use_new_zipfile_serialization=new)
        contents.append(path.read_bytes())
    save_file(state, path, {KEY: json.dumps(file_stamp())})
    contents.append(path.read_bytes())
    arrays = {name: value.numpy() for name, value in state.items()}
    for protocol in (0, 2, 4, 5):
        contents.append(pickle.dumps({"model": arrays, "args": args}, protocol))
    return contents


@settings(**FUZZ)
@given(data=st.data())
def test_changed_bytes_are_refused_or_read(
    data: st.DataObject, containers: list[bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = bytearray(data.draw(st.sampled_from(containers)))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, max(len(content) - 1, 0)))
        action = data.draw(st.sampled_from(["change", "change", "cut", "insert", "remove", "end"]))
        if action == "change" and content:
            content[position] = data.draw(st.integers(0, 255))
        elif action == "cut":
            del content[position:]
        elif action == "insert":
            content[position:position] = data.draw(st.binary(max_size=8))
        elif action == "remove":
            del content[position : position + data.draw(st.integers(1, 20))]
        else:
            content += data.draw(st.binary(max_size=20))
    path = tmp_path_factory.mktemp("fuzz") / "x.pth"
    path.write_bytes(bytes(content))
    with within_limit():
        try:
            checkpoint = open_checkpoint(path)
        except GroupDETRError:
            return
        assert all(isinstance(value, Tensor) for value in checkpoint.state.values())
