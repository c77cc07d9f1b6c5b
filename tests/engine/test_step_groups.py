"""Training some of the groups in a step: ``--groups-per-step`` and ``--groups-schedule``."""

from __future__ import annotations

import copy
from itertools import combinations
from pathlib import Path
from shlex import split
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import groupdetr
from groupdetr.cli.main import main
from groupdetr.detectors.recipe import Recipe
from groupdetr.detectors.tiny import TinyConditionalDETR
from groupdetr.engine.optimizer import create_optimizer
from groupdetr.engine.step_groups import GroupRows, groups_of_step, set_step_groups
from groupdetr.errors import UsageError
from groupdetr.modeling.group_chunks import with_loss
from groupdetr.modeling.parameter_axes import Axis, ParameterAxes
from groupdetr.registry import experiment
from groupdetr.settings import Settings, parse_groups_schedule
from tests.engine.test_resume import signal_at_step
from tests.runs import (
    evaluations,
    is_identical,
    load_checkpoint,
    losses_by_step,
    read_log,
    torchrun,
    train,
    train_arguments,
)

QUERIES = "queries.embedding"  # the table [K,N,C] of Conditional DETR
# With dropout, warm-up and a moving average of the weights.
OPTIONS = split("--steps 8 --warmup 2 --ema 0.9 --set dropout=0.1 num_queries=8 --groups 3")


def deterministic(name: str) -> Recipe:
    """Return a recipe with three groups, whose loss depends on no random number."""
    recipe = experiment(name).recipe.with_options(num_groups=3, num_classes=3, dropout=0.0)
    off = {"label_noise_ratio": 0.0, "box_noise_scale": 0.0, "grid_mask": 0.0}
    return recipe.with_options(**{key: value for key, value in off.items() if hasattr(recipe, key)})


def gradients(
    name: str, groups: tuple[int, ...] | None, chunk: int | None = None
) -> dict[str, Tensor]:
    """Return the gradients of all parameters of a detector, given the groups of the step."""
    torch.manual_seed(0)
    recipe = deterministic(name)
    model = recipe.build().train()
    images = recipe.example_images(64)
    targets = []
    for labels in ([0, 2], [1]):
        boxes = 0.25 + 0.25 * torch.rand(len(labels), 9 if "petr" in name else 4)
        targets.append(groupdetr.Target(torch.tensor(labels), boxes))
    set_step_groups(model, groups)
    loss, _ = with_loss(model, recipe.criterion(), chunk)(images, targets)
    loss.backward()
    return {
        key: torch.zeros_like(x) if x.grad is None else x.grad
        for key, x in model.named_parameters()
    }


@pytest.mark.parametrize("name", split("conditional-detr-tiny dn-detr-tiny dino-tiny petr-tiny"))
def test_the_mean_gradient_over_all_draws_is_that_of_all_groups(name: str) -> None:
    """This holds exactly, up to the order of sums: all subsets of the three groups are run."""
    expected = gradients(name, None)
    # The gradient of a bias of keys is zero but for rounding, so errors are compared with all.
    norm = torch.cat([x.flatten() for x in expected.values()]).norm()
    for per_step, chunk in ((1, None), (2, None), (2, 1)):
        draws = [gradients(name, groups, chunk) for groups in combinations(range(3), per_step)]
        for key, gradient in expected.items():
            mean = torch.stack([draw[key] for draw in draws]).mean(0)
            limit = 2e-5 * gradient.norm() + 1e-7 * norm
            assert (mean - gradient).norm() <= limit, (key, per_step, chunk)


def test_every_group_is_drawn_equally_often_and_every_draw_is_reproducible() -> None:
    settings = Settings(groups_per_step=2)
    draws = [groups_of_step(settings, 5, step, 0.0) for step in range(5000)]
    assert all(len(set(groups)) == 2 and groups == tuple(sorted(groups)) for groups in draws)
    counts = [sum(group in groups for groups in draws) for group in range(5)]
    # 5 standard deviations of a binomial distribution with p = 2/5
    assert all(abs(count - 2000) < 5 * (5000 * 0.4 * 0.6) ** 0.5 for count in counts)
    assert len(set(draws)) == 10, "all pairs occur"
    again = [groups_of_step(settings, 5, step, 0.9) for step in range(20)]
    assert again == draws[:20]
    other = Settings(groups_per_step=2, seed=1)
    assert [groups_of_step(other, 5, step, 0.0) for step in range(20)] != draws[:20]


def test_a_group_that_is_not_drawn_is_not_changed_at_all(shapes: Path, tmp_path: Path) -> None:
    """Neither momentum nor weight decay moves it, and its moments stay as they are."""
    rows: list[Tensor] = []

    class Rows(groupdetr.Callback):
        def on_train_start(self, trainer: Any) -> None:
            rows.append(trainer.model.queries.embedding.detach().clone())

        def on_step_end(self, trainer: Any, event: Any) -> None:
            rows.append(trainer.model.queries.embedding.detach().clone())

    run = groupdetr.train(
        shapes,
        model="conditional-detr-tiny",
        groups=3,
        groups_per_step=1,
        out=tmp_path / "run",
        steps=9,
        batch=4,
        imgsz=48,
        weight_decay=0.5,
        workers=0,
        device="cpu",
        callbacks=[Rows()],
    )
    settings = Settings(groups_per_step=1)
    drawn = [groups_of_step(settings, 3, step, 0.0) for step in range(9)]
    for step, groups in enumerate(drawn):
        changed = (rows[step] != rows[step + 1]).flatten(1).any(1)
        assert changed.tolist() == [group in groups for group in range(3)]
    content = load_checkpoint(run.path)
    states = content["optimizer"]["state"]
    for group in range(3):
        steps = sum(group in groups for groups in drawn)
        index = content["optimizer_parameters"].index(f"{QUERIES}[{group}]")
        assert states[index]["step"] == steps if steps else index not in states


def test_steps_of_all_groups_equal_the_plain_training_bit_for_bit(
    shapes: Path, tmp_path: Path
) -> None:
    """So the rows of the groups have exactly the optimizer of the table."""
    plain = load_checkpoint(train(shapes, tmp_path / "plain", *OPTIONS))
    options = ("--groups-per-step", "3", "--groups-schedule", "3:1")
    rows = load_checkpoint(train(shapes, tmp_path / "rows", *OPTIONS, *options))
    assert is_identical(rows["model"], plain["model"])
    assert is_identical(rows["ema"], plain["ema"])


class QueriesFirst(nn.Module):
    """A query source of a user, whose table [N,K,C] does not begin with the axis of groups."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(4, 3, 8))

    def parameter_axes(self) -> dict[str, ParameterAxes]:
        return {"embedding": ParameterAxes((Axis.QUERY, Axis.GROUP))}


def test_groups_may_be_any_axis_of_a_table() -> None:
    plain: Any = TinyConditionalDETR(num_groups=3).build()
    plain.queries = QueriesFirst()
    divided = copy.deepcopy(plain)
    rows = GroupRows(divided)
    settings = Settings(lr=0.1)
    optimizers = create_optimizer(plain, settings), create_optimizer(divided, settings, rows)
    for _ in range(2):
        gradient = torch.randn(4, 3, 8)
        plain.queries.embedding.grad = divided.queries.embedding.grad = gradient
        rows.set_gradients((0, 1, 2))
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(divided.queries.embedding, plain.queries.embedding)


def test_chunks_of_the_drawn_groups_have_the_losses_of_all_of_them(
    shapes: Path, tmp_path: Path
) -> None:
    options = split("--model dn-detr-tiny --groups 4 --groups-per-step 3 --steps 3 --accumulate 2")
    at_once = train(shapes, tmp_path / "at_once", *options)
    chunked = train(shapes, tmp_path / "chunked", *options, "--group-chunk", "2")
    for step, losses in losses_by_step(at_once).items():
        assert losses_by_step(chunked)[step] == pytest.approx(losses, rel=1e-4)


@pytest.mark.parametrize("killed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_run_with_draws_and_a_schedule_resumes_bit_for_bit(
    shapes: Path, tmp_path: Path, killed: bool
) -> None:
    """It is stopped after step 4, or killed after step 5, of which it has no checkpoint."""
    options = (*OPTIONS, *split("--groups-per-step 2 --groups-schedule 3:0.75,1:1 --save-every 2"))
    uninterrupted = train(shapes, tmp_path / "uninterrupted", *options)
    run = tmp_path / "run"
    if killed:
        signal_at_step(run, train_arguments(shapes, run, *options), step=5, signal_number=None)
    else:
        train(shapes, run, *options, "--stop-after", "4")
    assert load_checkpoint(run)["progress"]["step"] == 4
    assert main(["train", "--resume", str(run)]) == 0
    assert is_identical(load_checkpoint(run), load_checkpoint(uninterrupted))
    assert losses_by_step(run) == losses_by_step(uninterrupted)
    assert evaluations(run) == evaluations(uninterrupted)
    groups = [record["groups"] for record in read_log(run) if "losses" in record]
    assert groups == [2, 2, 2, 2, 2, 2, 1, 1]


def test_groups_that_the_schedule_drops_stay_as_they_are_without_moments(
    shapes: Path, tmp_path: Path
) -> None:
    options = (*split("--steps 6 --groups 3 --groups-schedule 3:0.5,1:1"), "--save-every", "1")
    run = train(shapes, tmp_path / "run", *options, "--stop-after", "3")
    before = load_checkpoint(run)
    assert main(["train", "--resume", str(run)]) == 0
    after = load_checkpoint(run)
    assert torch.equal(after["model"][QUERIES][1:], before["model"][QUERIES][1:])
    assert not torch.equal(after["model"][QUERIES][0], before["model"][QUERIES][0])

    def with_moments(content: dict[str, Any]) -> list[int]:
        names = content["optimizer_parameters"]
        states = content["optimizer"]["state"]
        return [group for group in range(3) if names.index(f"{QUERIES}[{group}]") in states]

    assert with_moments(before) == [0, 1, 2]
    assert with_moments(after) == [0]
    assert load_checkpoint(run)["progress"]["step"] == 6


def test_a_plain_run_that_goes_on_with_draws_keeps_the_moments_of_every_group(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(shapes, tmp_path / "run", *OPTIONS, "--stop-after", "2")
    before = load_checkpoint(run)
    table = before["optimizer"]["state"][before["optimizer_parameters"].index(QUERIES)]
    resume = ["train", "--resume", str(run), "--groups-per-step", "1", "--stop-after", "3"]
    assert main(resume) == 0
    after = load_checkpoint(run)
    (drawn,) = groups_of_step(Settings(groups_per_step=1), 3, 2, 0.0)
    for group in range(3):
        index = after["optimizer_parameters"].index(f"{QUERIES}[{group}]")
        row = after["optimizer"]["state"][index]
        assert torch.equal(row["exp_avg"], table["exp_avg"][group]) == (group != drawn)
        assert row["step"] == (3 if group == drawn else 2)
    assert main(["train", "--resume", str(run), "--groups-per-step", "None"]) == 2
    assert "keep --groups-per-step 1" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_draw_the_same_groups_as_one(shapes: Path, tmp_path: Path) -> None:
    options = split("--steps 4 --groups 3 --groups-per-step 1")
    alone = train(shapes, tmp_path / "alone", *options)
    together = tmp_path / "together"
    outcome = torchrun(2, train_arguments(shapes, together, *options))
    assert outcome.returncode == 0, outcome.stderr
    for step, losses in losses_by_step(alone).items():
        assert losses_by_step(together)[step] == pytest.approx(losses, rel=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--model table7/b --groups-per-step 1", "without each other"),
        ("--model table7/c --groups-schedule 11:0.5,1:1", "without each other"),
        ("--groups 3 --groups-per-step 4", "more than the 3 groups of this model"),
        ("--groups 3 --groups-schedule 6:0.5,1:1", "begins with 6 groups, and the model has 3"),
        (
            "--groups 3 --groups-schedule 3:0.5,1:1 --set inference_group=2",
            "inference uses group 2",
        ),
        (
            "--model dn-detr-tiny --groups-per-step 1 --set denoise=denoise_primary_group",
            "the primary group is not in every step",
        ),
        ("--groups-schedule 1:0.5,6:1", "K falls"),
    ],
)
def test_combinations_that_are_not_right_are_refused_before_the_data_are_read(
    tmp_path: Path, options: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = train_arguments(tmp_path / "no-data", tmp_path / "run", *split(options))
    assert main(arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_the_schedule_chooses_the_number_of_groups(shapes: Path, tmp_path: Path) -> None:
    run = groupdetr.train(
        shapes,
        model="conditional-detr-tiny",
        groups_schedule="4:0.5,2:1",
        out=tmp_path / "run",
        steps=1,
        imgsz=48,
        workers=0,
        device="cpu",
    )
    assert run.groups == 4


def test_the_stages_of_a_schedule_end_at_their_fractions() -> None:
    assert parse_groups_schedule("11:0.25,3:0.5,1:1") == ((11, 0.25), (3, 0.5), (1, 1.0))
    settings = Settings(groups_schedule="11:0.25,3:0.5,1:1")
    at = [settings.groups_at(progress) for progress in (0.0, 0.24, 0.25, 0.49, 0.5, 1.0)]
    assert at == [11, 11, 3, 3, 1, 1]
    texts = "6 6:0.5 6:1,1:0.5 6:0.5,0:1 6:0.5,6:1 6:nan x:1 6:0,1:1"
    for text in ("", *texts.split()):
        with pytest.raises(UsageError, match="groups-schedule"):
            Settings(groups_schedule=text)
