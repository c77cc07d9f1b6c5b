"""Weights and images that follow from their names, for the golden values in ``golden``.

The published code computed those values with the same weights. An array is a function of its name,
its shape and a seed: normal numbers of numpy's `RandomState`, which numpy never changes, seeded by
a hash of both names, then scaled by the first rule whose pattern is in the name.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

GOLDEN = Path(__file__).parent / "golden"
# [pattern, {kind of the rule: its numbers}]
Rules = Sequence[tuple[str, Mapping[str, Sequence[float]]]]


def read_golden(name: str) -> dict[str, Any]:
    """Return the content of a file of golden values."""
    content: dict[str, Any] = json.loads((GOLDEN / name).read_text(encoding="utf-8"))
    return content


def golden_state(golden: Mapping[str, Any]) -> dict[str, NDArray[np.float32]]:
    """Return the weights that the values of a file were computed with, by their published names."""
    state = {}
    for name, shape in golden["shapes"].items():
        state[name] = weight(name, shape, golden["rules"], golden["seed"])
    return state


def golden_image(golden: Mapping[str, Any]) -> NDArray[np.float32]:
    """Return the normalised image [3,H,W] of a file: coloured squares with fine noise on them."""
    image, seed = golden["image"], golden["seed"]
    height, width, block = image["height"], image["width"], image["block"]
    rows, columns = math.ceil(height / block), math.ceil(width / block)
    coarse = normal_numbers(f"{image['name']}/coarse", (3, rows, columns), seed)
    squares = np.kron(coarse, np.ones((1, block, block)))[:, :height, :width]
    fine = normal_numbers(f"{image['name']}/fine", (3, height, width), seed)
    return (squares + 0.3 * fine).astype(np.float32)


def weight(name: str, shape: Sequence[int], rules: Rules, seed: int) -> NDArray[np.float32]:
    """Return the weight of a name. `KeyError` for a rule that does not exist."""
    numbers = normal_numbers(name, shape, seed)
    kind, values = _rule_of(name, rules)
    if kind == "normal":
        mean, std = values
        numbers = mean + std * numbers
    elif kind == "fan":  # a matrix or a convolution, whose outputs are along one axis
        mean, gain, axis = values
        fan_in = math.prod(shape) / shape[int(axis)]
        numbers = mean + gain / math.sqrt(fan_in) * numbers
    elif kind == "positive":  # a scale or a variance
        mean, std, smallest = values
        numbers = np.maximum(mean + std * numbers, smallest)
    else:
        raise KeyError(kind)
    return numbers.astype(np.float32)


def _rule_of(name: str, rules: Rules) -> tuple[str, Sequence[float]]:
    for pattern, rule in rules:
        if re.search(pattern, name):
            return next(iter(rule.items()))
    raise KeyError(name)


def normal_numbers(name: str, shape: Sequence[int], seed: int) -> NDArray[np.float64]:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = np.random.RandomState(np.frombuffer(digest[:16], dtype="<u4"))
    return np.asarray(generator.standard_normal(tuple(shape)))
