"""The progress of commands where the output is not a terminal."""

from __future__ import annotations

import pytest

from groupdetr.console.progress import CountProgress, text_bar


def test_an_evaluation_by_a_command_prints_lines_with_times(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = iter([0.0, 1.0, 30.0, 35.0, 90.0])
    monkeypatch.setattr("time.monotonic", lambda: next(seconds))
    with CountProgress("val") as on_progress:
        for done in (1, 4, 5, 8):
            on_progress(done, 8)
    assert capsys.readouterr().out.splitlines() == [
        "val  4/8 images  30s passed  30s left",
        "val  8/8 images  1m30s passed  0s left",
    ]


def test_frames_are_counted_also_if_nobody_knows_how_many_there_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = iter([0.0, 30.0, 60.0, 90.0])
    monkeypatch.setattr("time.monotonic", lambda: next(seconds))
    with CountProgress("street.mp4", "frames") as on_progress:
        on_progress(10, None)
        on_progress(20, 40)
        on_progress(50, 40)  # The header of a file may count fewer frames than there are.
    assert capsys.readouterr().out.splitlines() == [
        "street.mp4  10 frames  30s passed",
        "street.mp4  20/40 frames  1m00s passed  1m00s left",
        "street.mp4  50/50 frames  1m30s passed  0s left",
    ]


def test_a_bar_of_characters_has_one_width() -> None:
    assert {len(text_bar(fraction / 7)) for fraction in range(8)} == {len(text_bar(1.0))}
    assert text_bar(0.5).count("█") == text_bar(0.5).count("░")
