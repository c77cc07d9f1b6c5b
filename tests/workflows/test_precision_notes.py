"""Before a training in bf16 on a CPU, its time is measured against that of fp32."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest

from groupdetr.engine import precision
from tests.runs import train


@pytest.mark.parametrize(("seconds", "warning"), [(2.5, "takes 2.5 times as long"), (0.5, "")])
def test_bf16_that_is_slower_than_fp32_is_warned_about_with_the_figure(
    seconds: float,
    warning: str,
    shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = 0.0
    calls = count()

    def process_time() -> float:
        """A step in fp32 takes one second, and the next one, in bf16, takes ``seconds``."""
        nonlocal now
        now += {1: 1.0, 3: seconds}.get(next(calls) % 4, 0.0)
        return now

    monkeypatch.setattr(precision, "time", SimpleNamespace(process_time=process_time))
    train(shapes, tmp_path / "run", "--steps", "1", "--precision", "bf16")
    output = " ".join(capsys.readouterr().out.split())
    assert ("on this CPU, a step in bf16" in output) == bool(warning)
    assert warning in output
