"""`groupdetr doctor`: this machine, and a test that the groups of a detector are isolated."""

from __future__ import annotations

import math
import os
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from groupdetr.analysis.isolation import DetectorIsolation, measure
from groupdetr.analysis.module_isolation import (
    ModuleIsolation,
    module_isolation,
)
from groupdetr.analysis.query_sources import MeasurementError
from groupdetr.console.output import create_console
from groupdetr.engine.accelerator import create_single_accelerator, environment
from groupdetr.engine.memory import is_out_of_memory
from groupdetr.errors import GroupDETRError, UsageError
from groupdetr.registry import create_model, load_object
from groupdetr.settings import MANY, expect_whole_number
from groupdetr.structures.json_object import JsonObject
from groupdetr.tasks.trained_detector import TrainedDetector

DEFAULT_MODEL = "conditional-detr-tiny"
DEFAULT_GROUPS = 3  # K of a model that is not a run
EXAMPLE_IMAGES = (2, 3, 128, 128)  # inputs of a module that comes without inputs
CONTRACT = (
    "return the module, or (module, inputs), or (module, inputs, num_groups): inputs of two images "
    "or more, as one argument, a tuple of arguments, or a dictionary of keyword arguments"
)


@dataclass(frozen=True)
class DoctorResult:
    """The result of `doctor`: the environment, the measurements and the exit code."""

    model: str
    device: str
    environment: JsonObject
    isolation: DetectorIsolation | ModuleIsolation

    @property
    def exit_code(self) -> int:
        """0 if the groups are separate, else 1."""
        return 0 if self.isolation.holds else 1

    def to_json(self) -> JsonObject:
        """Return the environment, all measurements, and whether the groups are isolated."""
        return {
            "environment": self.environment,
            "device": self.device,
            "model": self.model,
            "isolation": _infinity_to_none(asdict(self.isolation)),
            "holds": self.isolation.holds,
        }

    def show(self) -> None:
        """Print the environment and the measurements."""
        console = create_console()
        for name, value in self.environment.items():
            if name == "packages":
                value = ", ".join(f"{package} {version}" for package, version in value.items())
            elif isinstance(value, list):
                value = ", ".join(value) or "none"
            console.print(f"{name:<10}{value}")
        console.print(f"{'device':<10}{self.device}")
        if isinstance(self.isolation, ModuleIsolation):
            lines = _lines_of_module(self.model, self.isolation)
        else:
            lines = _lines_of_detector(self.model, self.isolation)
        for line in lines:
            console.print(line)


def _infinity_to_none(differences: JsonObject) -> JsonObject:
    """Return a copy with None in place of infinity, the difference of NaN. JSON has neither."""
    return {key: None if value == math.inf else value for key, value in differences.items()}


def _lines_of_detector(model: str, isolation: DetectorIsolation) -> list[str]:
    """Return the lines about a detector of this library."""
    lines = [
        f"\ngroup isolation of {model}: the largest difference of any logit or box coordinate",
        f"  {isolation.leak:.1e}  in the other groups, when the queries of one group are changed",
        f"  {isolation.separate_passes:.1e}  between all groups in one pass and each group in a "
        "pass of its own",
        f"  {isolation.inference:.1e}  between inference and the primary group in training",
    ]
    return [*lines, _verdict(isolation.holds)]


def _lines_of_module(model: str, isolation: ModuleIsolation) -> list[str]:
    """Return the lines about a module of the user."""
    lines = [
        f"\ngroup isolation of {model}: {isolation.num_groups} groups of {isolation.num_queries} "
        f"queries in {', '.join(isolation.queries)}",
        "the largest difference of any output:",
        f"  {isolation.leak:.1e}  in the other groups, when the queries of one group are changed",
        f"  {isolation.image_leak:.1e}  in other images, when the queries or the pixels of one "
        "image are changed",
    ]
    if isolation.changed_inputs:
        modules = ", ".join(isolation.changed_inputs)
        lines.append(f"the queries of one image were changed as inputs of {modules}")
    if not isolation.holds and isolation.leaking_module is not None:
        lines.append(
            f"the first module that leaks is {isolation.leaking_module}, by "
            f"{isolation.leaking_module_change:.1e}"
        )
    return [*lines, _verdict(isolation.holds)]


def _verdict(holds: bool) -> str:
    return "groups are separate" if holds else "GROUPS LEAK INTO EACH OTHER: this is not Group DETR"


def doctor(
    *,
    model: str | None = None,
    module: str | None = None,
    queries: Sequence[str] = (),
    groups: int | None = None,
    device: str = "auto",
) -> DoctorResult:
    """Measure the isolation of the groups of a detector, or of a module of the user.

    The arguments are the options of `groupdetr doctor`.
    """
    expect_whole_number("groups", groups, 1, MANY)
    if module is not None and model is not None:
        raise UsageError(
            "--model is a detector of this library, and --module is code of your own",
            remedy="leave out one of them",
        )
    if module is None and queries:
        raise UsageError(
            "--queries has no effect on a detector of this library, which knows its queries",
            remedy="leave out --queries, or name code of your own with --module",
        )
    torch_device = create_single_accelerator(device).device
    torch.manual_seed(0)
    if module is not None:
        isolation = _measure_module(module, queries, groups, torch_device)
        return DoctorResult(module, str(torch_device), environment(), isolation)

    model = model if model is not None else DEFAULT_MODEL
    if os.path.exists(model):
        if groups is not None:
            raise UsageError(
                "--groups has no effect on a run, which has its own groups",
                model,
                "leave out --groups",
            )
        network = TrainedDetector(model, str(torch_device)).model
    else:
        network = create_model(model, num_groups=groups or DEFAULT_GROUPS).to(torch_device)
    return DoctorResult(model, str(torch_device), environment(), measure(network))


def _measure_module(
    path: str, queries: Sequence[str], groups: int | None, device: torch.device
) -> ModuleIsolation:
    """Return the isolation of what the function ``path``, module:function, returns.

    `UsageError` if it fails, if it returns something else, or if the isolation cannot be told.
    """
    if ":" not in path:
        raise UsageError(
            f"{path!r} does not name a function",
            remedy="--module my_package.my_module:build_model, or --module my_file.py:build_model",
        )
    build_model = load_object(path)
    if not callable(build_model):
        raise UsageError(
            f"{path} is a {type(build_model).__name__}, not a function", path, CONTRACT
        )
    try:
        built = build_model()
    except Exception as error:
        raise _failure("the function fails", error, path, "correct the function") from error

    parts = list(built) if isinstance(built, tuple) else [built]
    if not 1 <= len(parts) <= 3 or not isinstance(parts[0], nn.Module):
        names = ", ".join(type(part).__name__ for part in parts)
        raise UsageError(f"the function returns ({names}), not a module", path, CONTRACT)
    network = parts[0].to(device)
    inputs = parts[1] if len(parts) > 1 else torch.rand(EXAMPLE_IMAGES)
    num_groups = _number_of_groups(parts[2] if len(parts) > 2 else None, groups, network, path)
    try:
        return module_isolation(network, _to(inputs, device), num_groups, queries)
    except MeasurementError as error:
        raise UsageError(
            f"it cannot be told whether the groups are isolated: {error}",
            path,
            "name the queries with --queries, a parameter or input of the model, and K with "
            f"--groups; or let the function {CONTRACT}",
        ) from error
    except GroupDETRError:
        raise
    except Exception as error:
        if isinstance(error, MemoryError | RuntimeError) and is_out_of_memory(error):
            raise
        if len(parts) == 1:
            what = f"the module fails with random images {list(EXAMPLE_IMAGES)}"
            remedy = f"let the function {CONTRACT}"
        else:
            what = "the module fails with the inputs of the function"
            remedy = "correct the module or its inputs"
        raise _failure(what, error, path, remedy) from error


def _number_of_groups(
    of_function: object, of_option: int | None, network: nn.Module, path: str
) -> int:
    """Return K, which the function or the option gives, or an attribute of the module.

    `UsageError` for none, and for two.
    """
    if of_function is None and of_option is None:
        of_function = getattr(network, "num_groups", None)
    if of_function is None and of_option is None:
        raise UsageError(
            "the number of groups is unknown", path, "--groups K, or let the function return it"
        )
    if of_function is None:
        assert of_option is not None
        return of_option
    is_count = isinstance(of_function, int) and not isinstance(of_function, bool)
    if not is_count:
        raise UsageError(f"the number of groups is {of_function!r}", path, CONTRACT)
    assert isinstance(of_function, int)
    if of_option is not None and of_option != of_function:
        raise UsageError(
            f"--groups is {of_option}, and the function returns {of_function} groups",
            path,
            "leave out --groups",
        )
    return of_function


def _failure(what: str, error: Exception, path: str, remedy: str) -> UsageError:
    """Return the error for code of the user that raised an exception, with its file and line."""
    lines = traceback.extract_tb(error.__traceback__)
    # The last line of the user's code says more than the line of torch that it calls.
    torch_folder = os.path.dirname(torch.__file__)
    line = [line for line in lines if not line.filename.startswith(torch_folder)][-1]
    reason = f"{type(error).__name__}: {error}"
    return UsageError(f"{what}: {reason}", f"{path}: {line.filename}, line {line.lineno}", remedy)


def _to(value: Any, device: torch.device) -> Any:
    """Return inputs on a device: tensors, and whatever else has a method ``to``."""
    if hasattr(value, "to"):
        return value.to(device)
    if isinstance(value, Mapping):
        return {name: _to(item, device) for name, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_to(item, device) for item in value)
    return value
