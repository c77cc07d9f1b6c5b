"""The runtimes: how a graph is written for each, and how the file is run."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import operator
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from groupdetr.deployment.graph import INPUT, SCENE_INPUTS, DetectionGraph
from groupdetr.errors import UsageError
from groupdetr.structures.json_object import JsonObject

METADATA = "groupdetr"  # the key of the metadata in a file
Outputs = dict[str, NDArray[Any]]
# Images [B,3,H,W] float32 from 0 to 255, or the inputs of `SceneGraph` -> the outputs by name
Runtime = Callable[..., Outputs]
OPSETS = 18, 23  # the first and the last version of ONNX's operators that can be written
OPSET = 20  # the first version that has all operators of the detectors
# A file of ONNX is one message of protobuf, which has 2 GiB at most. Weights of more bytes than
# this, which is PyTorch's own limit, are written to a second file.
_MAX_ONNX_BYTES = 1536 * 2**20


@dataclass(frozen=True)
class ExportOptions:
    """How a graph is written."""

    dynamic_batch: bool  # any number of images; otherwise one
    size: tuple[int, int] | None  # height and width of the input; None: any
    half: bool
    opset: int | None  # of ONNX; None: OPSET
    # height and width of the images that the graph is recorded with, if any size is allowed
    example_size: tuple[int, int] = (480, 640)
    views: int = 0  # images of a scene; 0 for a detector of single images
    two_frames: bool = False  # of a scene

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the inputs."""
        if not self.views:
            return (INPUT,)
        return SCENE_INPUTS if self.two_frames else SCENE_INPUTS[:2]

    def example(self) -> tuple[Tensor, ...]:
        """Return inputs to record the graph with: images [B,3,H,W], or a scene."""
        height, width = self.size or self.example_size
        generator = torch.Generator().manual_seed(0)
        batch = 2 if self.dynamic_batch else 1
        shape = (batch, self.views, 3, height, width) if self.views else (batch, 3, height, width)
        images = 255 * torch.rand(shape, generator=generator)
        matrices = torch.eye(4).repeat(batch, self.views, 1, 1)
        return (images, matrices, torch.ones(batch))[: len(self.inputs)]

    def dynamic_shapes(self) -> dict[str, dict[int, Any]]:
        """Return which axes of the inputs have any size, as torch.export takes it."""
        any_size = torch.export.Dim.DYNAMIC
        axes = {0: any_size} if self.dynamic_batch else {}
        if self.size is None:
            axes |= {2: any_size, 3: any_size}
        return dict.fromkeys(self.inputs, axes)


@dataclass(frozen=True)
class ExportFormat:
    """A format of a runtime.

    ``runtime`` is the name of the program that runs the file. ``write`` writes a graph with
    metadata to a file. ``load`` opens the file with that runtime alone, and returns it with the
    metadata. ``modules`` are the packages that both need, and ``extra`` is the extra of this
    library that installs them, empty if it needs none.
    """

    runtime: str
    ending: str
    modules: tuple[str, ...]
    extra: str
    write: Callable[[DetectionGraph, ExportOptions, JsonObject, Path], None]
    load: Callable[[Path], tuple[Runtime, JsonObject]]

    def expect_installed(self) -> None:
        """Raise `UsageError` if a package is missing."""
        for module in self.modules:
            _require(module, self.extra)


# torch.export


def _write_torch(
    graph: DetectionGraph, options: ExportOptions, metadata: JsonObject, file: Path
) -> None:
    program = _exported(graph, options)
    with _quiet():
        torch.export.save(program, file, extra_files={METADATA: json.dumps(metadata)})


def _exported(graph: DetectionGraph, options: ExportOptions) -> torch.export.ExportedProgram:
    # The other attentions return tensors with strides that ONNX's decomposition does not keep.
    with _quiet(), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        return torch.export.export(
            graph, options.example(), dynamic_shapes=options.dynamic_shapes(), strict=False
        )


def _load_torch(file: Path) -> tuple[Runtime, JsonObject]:
    extra = {METADATA: ""}
    with _quiet(), _opening(file):
        module = torch.export.load(file, extra_files=extra).module()
        metadata: JsonObject = json.loads(extra[METADATA])

    def run(*inputs: NDArray[np.float32]) -> Outputs:
        with torch.inference_mode():
            values = module(*map(torch.from_numpy, inputs))
        return {name: value.numpy() for name, value in zip(metadata["outputs"], values)}

    return run, metadata


# ONNX


def _write_onnx(
    graph: DetectionGraph, options: ExportOptions, metadata: JsonObject, file: Path
) -> None:
    example = options.example()
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            _exported(graph, options),
            example,
            dynamo=True,
            opset_version=options.opset or OPSET,
            input_names=list(options.inputs),
            output_names=list(graph.outputs),
            custom_translation_table={operator.floordiv: _floor_division},
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props[METADATA] = json.dumps(metadata)
    # Constants that were computed in advance count, too.
    num_bytes = 0
    for value in program.model.graph.initializers.values():
        if value.const_value is not None:
            num_bytes += value.const_value.nbytes
    program.save(file, external_data=num_bytes > _MAX_ONNX_BYTES)


def weights_beside(file: Path) -> Path:
    """Return the file of the weights of a file of ONNX, if they are too large for that file."""
    return file.with_name(f"{file.name}.data")


def _floor_division(numerator: Any, denominator: Any) -> Any:
    """Return the operators for ``//`` of two sizes.

    ONNX's division of integers rounds towards zero, and PyTorch's own translation is only that. But
    a rounded up half of a side is -(-side // 2), whose numerator is negative.
    """
    op = importlib.import_module("onnxscript").opset18
    return op.Div(op.Sub(numerator, op.Mod(numerator, denominator)), denominator)


def _load_onnx(file: Path) -> tuple[Runtime, JsonObject]:
    onnxruntime = _require("onnxruntime", "onnx")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    options.intra_op_num_threads = torch.get_num_threads()
    with _opening(file):
        session = onnxruntime.InferenceSession(
            str(file), options, providers=["CPUExecutionProvider"]
        )
        metadata: JsonObject = json.loads(session.get_modelmeta().custom_metadata_map[METADATA])

    def run(*inputs: NDArray[np.float32]) -> Outputs:
        names = metadata.get("inputs", [INPUT])
        values = session.run(metadata["outputs"], dict(zip(names, inputs)))
        return dict(zip(metadata["outputs"], values))

    return run, metadata


# OpenVINO


def _write_openvino(
    graph: DetectionGraph, options: ExportOptions, metadata: JsonObject, file: Path
) -> None:
    openvino = _require("openvino", "openvino")
    with TemporaryDirectory() as folder:
        onnx = Path(folder) / "model.onnx"
        _write_onnx(graph, options, metadata, onnx)
        model = openvino.convert_model(onnx)
        model.set_rt_info(json.dumps(metadata), [METADATA])
        # The weights are in another file, with the ending .bin.
        openvino.save_model(model, file, compress_to_fp16=options.half)


def _load_openvino(file: Path) -> tuple[Runtime, JsonObject]:
    openvino = _require("openvino", "openvino")
    core = openvino.Core()
    with _opening(file):
        model = core.read_model(file)
        metadata: JsonObject = json.loads(model.get_rt_info([METADATA]).astype(str))
    # Otherwise it computes in bfloat16 on processors that can: differences of 0.01 in scores.
    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = core.compile_model(model, "CPU", hints)

    def run(*inputs: NDArray[np.float32]) -> Outputs:
        values = compiled(list(inputs))
        return {name: values[name] for name in metadata["outputs"]}

    return run, metadata


FORMATS = {
    "torch-export": ExportFormat("PyTorch", ".pt2", (), "", _write_torch, _load_torch),
    "onnx": ExportFormat(
        "ONNX Runtime", ".onnx", ("onnxscript", "onnxruntime"), "onnx", _write_onnx, _load_onnx
    ),
    "openvino": ExportFormat(
        "OpenVINO", ".xml", ("onnxscript", "openvino"), "openvino", _write_openvino, _load_openvino
    ),
}


def runtime_name(file: Path) -> str:
    """Return the name of the program that runs an exported file."""
    return next(item.runtime for item in FORMATS.values() if item.ending == file.suffix)


def _require(module: str, extra: str) -> Any:
    """Import a module of an extra. `UsageError` with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(
            f"{module} is not installed, or cannot be imported: {error}",
            remedy=f"pip install 'groupdetr[{extra}]'",
        ) from error


@contextlib.contextmanager
def _opening(file: Path) -> Iterator[None]:
    """Turn any error while a file is opened into a `UsageError`."""
    try:
        yield
    except Exception as error:  # the runtimes have no common error
        first_line = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise UsageError(
            f"this file is damaged, or `groupdetr export` did not write it: {first_line}",
            str(file),
            "export the detector again",
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress what PyTorch's exporters print and warn of: it is about their own insides."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
