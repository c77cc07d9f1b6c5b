"""What the training loop promises."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from groupdetr.cli.main import main
from groupdetr.engine.optimizer import set_rates
from groupdetr.errors import UsageError
from groupdetr.settings import Settings
from tests.runs import arguments, checkpoint, log, losses, norms, train


def test_pieces_of_a_batch_give_the_step_of_the_whole(shapes: Path, tmp_path: Path) -> None:
    whole = train(shapes, tmp_path / "whole", "--steps", "4")
    pieces = train(shapes, tmp_path / "pieces", "--steps", "4", "--accumulate", "2")
    for step, expected in losses(whole).items():
        assert losses(pieces)[step] == pytest.approx(expected, rel=1e-4)


def test_the_number_of_loaders_changes_nothing(shapes: Path, tmp_path: Path) -> None:
    alone = train(shapes, tmp_path / "alone", "--steps", "4", "--augment", "detr")
    helped = train(
        shapes, tmp_path / "helped", "--steps", "4", "--augment", "detr", "--workers", "2"
    )
    assert losses(alone) == losses(helped)


def test_gradient_checkpointing_changes_nothing(shapes: Path, tmp_path: Path) -> None:
    plain = train(shapes, tmp_path / "plain", "--steps", "3")
    again = train(shapes, tmp_path / "again", "--steps", "3", "--recompute")
    for step, expected in losses(plain).items():
        assert losses(again)[step] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("model", ["conditional-detr-tiny", "dn-detr-tiny"])
def test_groups_in_chunks_give_the_step_of_all_at_once(
    shapes: Path, tmp_path: Path, model: str
) -> None:
    """Also in pieces of a batch."""
    options = ("--model", model, "--steps", "3", "--groups", "3", "--accumulate", "2")
    together = train(shapes, tmp_path / "together", *options)
    chunked = train(shapes, tmp_path / "chunked", *options, "--group-chunk", "2")
    for step, expected in losses(together).items():
        assert losses(chunked)[step] == pytest.approx(expected, rel=1e-4)
    assert norms(chunked) == pytest.approx(norms(together), rel=1e-4)


def test_chunks_of_groups_that_are_not_independent_are_refused_before_anything_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for model in ("table7/b", "table7/c"):
        assert (
            main(
                arguments(
                    tmp_path / "nowhere", tmp_path / "run", "--model", model, "--group-chunk", "1"
                )
            )
            == 2
        )
        assert "--group-chunk" in capsys.readouterr().err


def test_bf16_trains_and_stays_near_fp32(shapes: Path, tmp_path: Path) -> None:
    full = losses(train(shapes, tmp_path / "full", "--steps", "3"))
    half = losses(train(shapes, tmp_path / "half", "--steps", "3", "--precision", "bf16"))
    assert sum(half[1].values()) == pytest.approx(sum(full[1].values()), rel=0.05)


def test_a_loss_that_is_not_finite_stops_with_code_4_and_names_step_and_images(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    options = (
        "--steps",
        "40",
        "--lr",
        "1e30",
        "--backbone-lr",
        "1e30",
        "--warmup",
        "0",
        "--save-every",
        "1",
    )
    assert main(arguments(shapes, run, *options)) == 4
    said = capsys.readouterr().err
    assert "step" in said
    assert ".jpg" in said
    assert "last.pt" in said
    assert all(torch.isfinite(x).all() for x in checkpoint(run)["model"].values())


def test_a_batch_larger_than_the_data_set_trains(shapes: Path, tmp_path: Path) -> None:
    run = train(shapes, tmp_path / "run", "--epochs", "4", "--batch", "32", "--accumulate", "2")
    assert checkpoint(run)["progress"]["step"] == 3  # 4 x 24 / 32


def test_training_against_the_clock_ends_in_time_with_an_evaluation(
    shapes: Path, tmp_path: Path
) -> None:
    run = train(shapes, tmp_path / "run", "--minutes", "0.1")
    last = log(run)[-1]
    assert "AP" in last
    assert last["seconds"] < 12


def test_training_stops_early_when_ap_no_longer_rises(shapes: Path, tmp_path: Path) -> None:
    run = train(
        shapes,
        tmp_path / "run",
        "--epochs",
        "50",
        "--lr",
        "0",
        "--backbone-lr",
        "0",
        "--early-stop",
        "2",
    )
    assert len([record for record in log(run) if "AP" in record]) <= 4


def test_a_run_folder_holds_what_the_documentation_says(shapes: Path, tmp_path: Path) -> None:
    run = train(shapes, tmp_path / "run", "--epochs", "2")
    for name in (
        "config.yaml",
        "env.json",
        "data.json",
        "log.jsonl",
        "results.csv",
        "val/metrics.json",
    ):
        assert (run / name).stat().st_size > 0
    with (run / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1.0", "2.0"]
    assert (run / "weights/best.safetensors").is_file()
    assert not list((run / "weights").glob(".*"))


def rates(settings: Settings, total: int) -> list[float]:
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1)], "part": "rest"}], lr=1.0)
    return [set_rates(optimizer, settings, step, step / total) for step in range(total)]


def test_the_step_schedule_drops_once_to_a_tenth_at_epoch_11_of_12() -> None:
    told = rates(Settings(), 1200)
    assert told[1099] == pytest.approx(1e-4)
    assert told[1100] == pytest.approx(1e-5)


def test_warm_up_rises_linearly_and_cosine_falls_to_nearly_nothing() -> None:
    told = rates(Settings(schedule="cosine", warmup=10), 1000)
    assert told[4] == pytest.approx(0.5e-4, rel=1e-3)
    assert told[-1] < 1e-9


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch": 0},
        {"epochs": -1.0},
        {"lr": float("nan")},
        {"batch": 5, "accumulate": 2},
        {"ema": 1.0},
        {"instability_images": -1},
        {"group_chunk": 0},
    ],
)
def test_settings_that_cannot_be_followed_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Settings(**wrong)  # type: ignore[arg-type]
