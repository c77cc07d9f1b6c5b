"""The choice of the precision."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch

from groupdetr.engine import precision as precision_module
from groupdetr.engine.callback_list import CallbackList
from groupdetr.engine.inference import map_dataset
from groupdetr.engine.precision import (
    Precision,
    choose_precision,
    expect_precision,
    in_precision,
    resolve_precision,
    tf32,
)
from groupdetr.engine.trainer import Trainer
from groupdetr.errors import DivergedError, UsageError


@pytest.mark.parametrize(
    ("fp32", "bf16", "expected"), [(0.02, 0.01, "bf16"), (0.01, 0.02, "fp32"), (0.01, 0.01, "fp32")]
)
def test_bf16_is_chosen_only_if_it_is_clearly_faster(
    fp32: float, bf16: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    def run() -> None:
        """Take as much time of the processor as the precision says."""
        nonlocal now
        now += bf16 if torch.is_autocast_enabled("cpu") else fp32

    monkeypatch.setattr(precision_module, "time", SimpleNamespace(process_time=lambda: now))
    choice = choose_precision(run, torch.device("cpu"))
    assert choice.precision == expected
    assert choice.speed_up == pytest.approx(fp32 / bf16)
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
        with in_precision(torch.device("cpu"), precision):
            assert (x @ x).dtype == dtype


def tf32_settings() -> tuple[object, ...]:
    """Return every setting of PyTorch that says whether this process uses TF32."""
    return (
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
        torch.backends.cuda.matmul.fp32_precision,
        torch.backends.mkldnn.matmul.fp32_precision,
        torch.backends.cudnn.conv.fp32_precision,
        torch.backends.cudnn.rnn.fp32_precision,
    )


@pytest.mark.filterwarnings("ignore:(User provided device_type|CUDA is not available)")
def test_a_prediction_on_a_gpu_uses_tf32_only_with_bf16() -> None:
    """As a validation does, whatever PyTorch's own setting is."""
    before = tf32_settings()
    cases: list[tuple[Precision, bool]] = [("fp32", False), ("bf16", True)]
    for precision, is_allowed in cases:
        with in_precision(torch.device("cuda"), precision):
            assert torch.backends.cudnn.allow_tf32 == is_allowed
        assert tf32_settings() == before


@pytest.mark.parametrize("is_allowed", [True, False])
def test_tf32_is_set_in_its_context_alone(is_allowed: bool) -> None:
    before = tf32_settings()
    with tf32(is_allowed):
        assert torch.get_float32_matmul_precision() == ("high" if is_allowed else "highest")
        assert torch.backends.cudnn.allow_tf32 == is_allowed
    assert tf32_settings() == before


def test_a_setting_of_the_newer_interface_of_pytorch_is_restored_too() -> None:
    """After it was used, the older interface may raise errors."""
    before = tf32_settings()
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    with tf32(is_allowed=False):  # It restores what this test changes.
        matmul.fp32_precision, convolution.fp32_precision = "tf32", "ieee"
        with pytest.raises(RuntimeError):
            torch.get_float32_matmul_precision()
        with tf32(is_allowed=False):
            assert torch.get_float32_matmul_precision() == "highest"
        assert (matmul.fp32_precision, convolution.fp32_precision) == ("tf32", "ieee")
    assert tf32_settings() == before


@pytest.mark.parametrize(("precision", "is_allowed"), [("bf16", True), ("no", False)])
def test_a_validation_and_a_training_that_fails_leave_no_setting_of_tf32_behind(
    precision: str, is_allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU, which only the accelerator pretends to have."""
    accelerator: Any = SimpleNamespace(
        device=torch.device("cuda"),
        mixed_precision=precision,
        num_processes=1,
        process_index=0,
        is_main_process=True,
    )
    seen: list[bool] = []

    def look(*_: object) -> list[int]:
        seen.append(torch.backends.cudnn.allow_tf32)
        return [0]

    def fail() -> None:
        seen.append(torch.backends.cudnn.allow_tf32)
        raise DivergedError("the loss is not finite", "images: 1.jpg")

    before = tf32_settings()
    batches = SimpleNamespace(batches=lambda *_: [SimpleNamespace(indices=[0])])
    task: Any = SimpleNamespace(val=[None], val_loader=batches)
    assert map_dataset(look, task, accelerator, 1, 0) == [0]
    assert tf32_settings() == before

    trainer: Any = SimpleNamespace(
        accelerator=accelerator,
        callbacks=CallbackList(),
        _train=fail,
        task=SimpleNamespace(val_loader=SimpleNamespace(close=look)),
        cache=None,
    )
    with pytest.raises(DivergedError):
        Trainer.train(trainer)
    assert tf32_settings() == before
    assert seen == [is_allowed] * 3


def test_another_precision_is_refused() -> None:
    with pytest.raises(UsageError, match="fp16"):
        expect_precision("fp16")
