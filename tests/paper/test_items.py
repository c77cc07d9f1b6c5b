"""Every item has a page that is drawn from its results, and that makes no claim without numbers."""

from __future__ import annotations

import json
import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from groupdetr.analysis.training_memory import StepMemory
from groupdetr.errors import UsageError
from groupdetr.paper import fig4, fig7
from groupdetr.paper.demo import Demo
from groupdetr.paper.item import Choices, Item
from groupdetr.paper.items import ITEMS, cost
from groupdetr.paper.plan import Plan, Row
from groupdetr.paper.results import Results
from groupdetr.paper.scale import Scale
from groupdetr.paper.trainings import Store
from groupdetr.workflows.paper import reproduce
from tests.report.checks import assert_self_contained

from .stored import fingerprint, finish

ALL = [*ITEMS.values(), Demo()]


def results_of(item: Item, folder: Path, seeds: int, monkeypatch: pytest.MonkeyPatch) -> Results:
    """Return the results of an item at small scale whose trainings are done.

    AP grows with the seed and with K, and the time of a training with K.
    """
    monkeypatch.setattr(fig4, "group_metrics", lambda *_: [40.0, 41.0, 42.0])
    monkeypatch.setattr(fig7, "step_memory", lambda step: StepMemory(10.0 * step.groups, None))
    scale = Scale(Store(folder))
    choices = Choices(range(seeds))
    plan = item.plan(scale, choices)
    for _ in range(2):  # Equal-time baselines are known when the others are done.
        for run in plan.needed(scale.store):
            if not run.done:
                training = run.training
                ap = 0.3 + 0.02 * training.groups + 0.01 * training.seed
                finish(training, scale.store, 100.0 + 10 * training.groups, ap)
    assert not plan.waiting(scale.store)
    return item.collect(scale, choices)


@pytest.mark.parametrize(
    ("item", "seeds"),
    [
        *(pytest.param(item, 2, id=item.name) for item in ALL),
        pytest.param(ITEMS["table1"], 1, id="table1 with one seed"),
    ],
)
def test_the_page_of_an_item_is_drawn_from_its_results(
    item: Item, seeds: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = results_of(item, tmp_path, seeds, monkeypatch)
    page = item.document(results)
    assert_self_contained(page)
    assert item.command() in page
    assert not re.search(r"\bnan\b|\bNone\b", re.sub(r"<style>.*?</style>", "", page, flags=re.S))
    content = json.loads(json.dumps(results.to_json(), allow_nan=False))
    again = Results.from_json(content)
    assert item.document(again) == page
    assert item.table(again) == item.table(results)
    assert item.table(results).startswith("| ")
    for row in content["gains"]:
        assert (row["low"] is None) == (seeds == 1)


def test_the_keys_of_the_rows_of_an_item_are_unique(tmp_path: Path) -> None:
    for item, data in product(ALL, (None, tmp_path / "coco")):
        if data is not None and item.name in ("vit-h", "demo"):
            continue  # They are items of the small scale.
        expect_unique_keys(item.plan(Scale(Store(tmp_path), data), Choices(range(1))))


def test_the_rows_of_presets_of_one_family_and_of_two_lengths_are_told_apart(
    tmp_path: Path,
) -> None:
    """A gain is looked up by the keys of its rows, so it would be that of other trainings."""
    store = Store(tmp_path)
    models = ("conditional-detr-lite", "conditional-detr-tiny", "conditional-detr-lite")
    for name in ("table2", "table3", "convergence"):
        plan = ITEMS[name].plan(Scale(store, models=models), Choices(range(1)))
        expect_unique_keys(plan)
        models_of_row = {
            row.key: row.trainings[0].model for row in plan.rows if isinstance(row, Row)
        }
        assert set(models_of_row.values()) == set(models)
        for row in plan.gains:
            if row.over in models_of_row:
                assert models_of_row[row.over] == models_of_row[row.of]
    for equal in ("epochs", "time"):
        coco = Scale(store, tmp_path / "coco")
        expect_unique_keys(ITEMS["table2"].plan(coco, Choices(range(1), equal=equal)))


def test_a_number_that_is_given_twice_is_one_row(tmp_path: Path) -> None:
    data = tmp_path / "photos"
    options = {"data": data, "models": ["conditional-detr-tiny"], "plan": True, "out": tmp_path}
    for name, given in (("table3", {"groups": [6, 6]}), ("convergence", {"epochs": [2.0, 2.0]})):
        plan = reproduce(name, **options, **given)
        assert [line["training"].split("-")[3] for line in plan.lines] == ["k6", "k1"]


@pytest.mark.parametrize(
    ("name", "models", "words"),
    [
        ("table3", ("conditional-detr-tiny", "petr-tiny"), "metrics are of box and of box3d"),
        ("table3", ("mask2former-tiny", "conditional-detr-tiny"), "are of mask and of box"),
        ("fig4", ("petr-tiny",), "fig4 is about detectors of images"),
        ("vit-h", ("petr-tiny",), "vit-h is about detectors of images"),
    ],
)
def test_detectors_that_do_not_fit_an_item_are_refused_before_any_training(
    name: str, models: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=words):
        ITEMS[name].plan(Scale(Store(tmp_path), models=models), Choices(range(1)))


def test_trainings_on_a_dataset_that_has_changed_are_not_put_on_one_page(tmp_path: Path) -> None:
    model = "conditional-detr-tiny"
    scale, seeds = Scale(Store(tmp_path), tmp_path / "photos", models=(model,)), Choices(range(2))
    plan = ITEMS["fig3"].plan(scale, seeds)
    train = {"train": {"images": 80}}
    for run, content in zip(plan.needed(scale.store), ("before", "now")):
        run.folder.mkdir(parents=True)
        data = {"splits": train, "fingerprint": fingerprint(content)}
        run.run.data.write_text(json.dumps(data))
        finish(run.training, scale.store)
    with pytest.raises(UsageError, match="data have changed between two trainings"):
        reproduce("fig3", data=tmp_path / "photos", models=[model], seeds=2, out=tmp_path)
    assert not (tmp_path / "fig3").exists()


@pytest.mark.parametrize(
    ("name", "lacking"),
    [("table1", "environment"), ("fig4", "extra"), ("table7", "configurations")],
)
def test_results_that_cannot_be_drawn_replace_no_others(
    name: str, lacking: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as those of another version, or those that were edited."""
    content = results_of(ITEMS[name], tmp_path, 1, monkeypatch).to_json()
    file, own = tmp_path / "file.json", tmp_path / name / "results.json"
    file.write_text(json.dumps(content))
    reproduce(redraw=file, out=tmp_path)  # The file itself says of which item it is.
    before = own.read_bytes()
    content[lacking] = type(content[lacking])()
    file.write_text(json.dumps(content))
    with pytest.raises(UsageError, match=f"page of {name} cannot be drawn from this file"):
        reproduce(name, redraw=file, out=tmp_path)
    assert own.read_bytes() == before


def test_results_of_another_command_are_refused(tmp_path: Path) -> None:
    """The demo is no item, so there is no command that draws its page again."""
    file = tmp_path / "my results.json"
    for item, remedy in (("demo", "groupdetr paper table1"), ("fig8", f"--redraw '{file}'")):
        Results(item, "", "AP", ["AP"]).write(file)
        with pytest.raises(UsageError, match=f"has the results of {item}") as raised:
            reproduce("table1", redraw=file, out=tmp_path)
        assert raised.value.remedy.endswith(remedy)


def expect_unique_keys(plan: Plan) -> None:
    keys = [row.key for row in plan.rows]
    labels = [row.label for row in plan.rows]
    assert len(set(keys)) == len(keys)
    assert len(set(labels)) == len(labels)
    assert {key for row in plan.gains for key in (row.of, row.over)} <= set(keys)


def test_the_papers_gains_are_those_of_its_tables(tmp_path: Path) -> None:
    coco = Scale(Store(tmp_path), tmp_path / "coco")
    gains = {}
    for name in ("table1", "table2", "table3", "table4", "table5", "table6", "table7", "fig8"):
        for row in ITEMS[name].plan(coco, Choices(range(1))).gains:
            gains[name, row.label] = row.reported
    label = "Conditional DETR, K = 11, {} epochs: gain at the paper's equal time"
    assert gains["table2", label.format(12)] == 3.2
    assert gains["table2", label.format(50)] == 1.8
    assert gains["table3", "Conditional DETR, K = 11: gain at equal epochs"] == 5.0
    assert gains["table3", "DINO, K = 11: gain at equal epochs"] == 0.7
    assert gains["table4", "DINO, Swin-L, K = 11: gain at equal epochs"] == 0.4
    assert gains["table5", "PETR, K = 11: gain at equal epochs"] == 3.0
    assert gains["table7", "(d) over (a): Group DETR"] == 5.0
    assert gains["fig8", "groups in addition to denoising"] == 2.0
    assert gains["table1", "(c) over (a)"] == 2.3


def test_what_an_item_costs_does_not_depend_on_what_is_done(tmp_path: Path) -> None:
    small, coco = Scale(Store(tmp_path)), Scale(Store(tmp_path), tmp_path / "coco")
    item = ITEMS["table2"]
    before = cost(item, small, coco)
    assert before.trainings == 6
    for run in item.plan(small, Choices(range(1))).needed(small.store):
        finish(run.training, small.store)
    assert cost(item, small, coco) == before
    # Conditional DETR, 12, 15 and 50 and 60 epochs, and DAB-DETR likewise.
    hours = 8 / 60 * (23 * (12 + 15 + 50 + 60) + 28 * (12 + 50))
    hours += 8 / 60 * (28 * (12 + 15 + 50 + 60) + 33 * (12 + 50))
    assert before.gpu_hours == pytest.approx(hours)


@pytest.mark.parametrize("option", [{"plan": True}, {"on": "slurm"}])
def test_trainings_of_no_item_are_not_planned(option: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="for the trainings of one item"):
        reproduce(out=tmp_path, **option)
