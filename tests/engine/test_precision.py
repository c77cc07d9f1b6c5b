"""The choice of the precision."""

from __future__ import annotations

import time
from typing import Literal

import pytest
import torch

from groupdetr.engine.precision import (
    autocast,
    choose_precision,
    expect_precision,
    resolve_precision,
)
from groupdetr.errors import UsageError


def busy(seconds: float) -> None:
    """Use the processor for a time."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


@pytest.mark.parametrize(
    ("fp32", "bf16", "expected"), [(0.02, 0.01, "bf16"), (0.01, 0.02, "fp32"), (0.01, 0.01, "fp32")]
)
def test_bf16_is_chosen_only_if_it_is_clearly_faster(
    fp32: float, bf16: float, expected: str
) -> None:
    cpu = torch.device("cpu")
    choice = choose_precision(lambda: busy(bf16 if torch.is_autocast_enabled("cpu") else fp32), cpu)
    assert choice.precision == expected
    assert choice.speed_up == pytest.approx(fp32 / bf16, rel=0.3)
    assert f"so {expected if expected == 'fp32' else 'it'} is used" in str(choice)


@pytest.mark.parametrize(
    ("precision", "on_gpu", "supports_bf16", "expected"),
    [
        ("auto", True, True, "bf16"),
        ("auto", True, False, "fp32"),
        ("auto", False, True, "fp32"),
        ("fp32", True, True, "fp32"),
        ("bf16", False, False, "bf16"),
    ],
)
def test_by_default_a_gpu_that_has_bf16_uses_it(
    precision: Literal["auto", "fp32", "bf16"],
    on_gpu: bool,
    supports_bf16: bool,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: supports_bf16)
    assert resolve_precision(precision, on_gpu) == expected


def test_matrix_products_have_the_precision() -> None:
    x = torch.rand(4, 4)
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with autocast(torch.device("cpu"), precision):
            assert (x @ x).dtype == dtype


def test_another_precision_is_refused() -> None:
    with pytest.raises(UsageError, match="fp16"):
        expect_precision("fp16")
