"""Trainings by what they are: their names, their commands, and what is in their folders."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from groupdetr.cli.main import read_options
from groupdetr.cli.options.train import TrainOptions
from groupdetr.errors import UsageError
from groupdetr.paper.item import Choices
from groupdetr.paper.items import ITEMS
from groupdetr.paper.scale import Scale
from groupdetr.paper.trainings import Store, Training

from .stored import finish, training, write_config


def test_a_name_says_what_a_training_is(tmp_path: Path) -> None:
    item = training(tmp_path, groups=6, epochs=12, seed=3)
    assert item.name == "conditional-detr-tiny-k6-n50-12e-photos-seed3"


@pytest.mark.parametrize(
    "changes",
    [
        {"groups": 2},
        {"queries": 20},
        {"fields": (("decoder_layers", 2),)},
        {"model": "dab-detr-tiny"},
    ],
)
def test_other_trainings_have_other_names(changes: dict[str, object], tmp_path: Path) -> None:
    item = training(tmp_path)
    assert dataclasses.replace(item, **changes).name != item.name  # type: ignore[arg-type]


def test_other_settings_have_other_names(tmp_path: Path) -> None:
    item = training(tmp_path)
    changes: list[dict[str, object]] = [
        *({"lr": 0.1}, {"epochs": 2.0}, {"seed": 5}, {"freeze": ("backbone",)})
    ]
    for changed in changes:
        assert item.with_changes(**changed).name != item.name, changed


def test_how_a_training_is_computed_does_not_change_its_name(tmp_path: Path) -> None:
    item = training(tmp_path)
    assert item.with_changes(threads=1, workers=0, device="cpu").name == item.name


def test_micro_batches_change_the_name_only_if_batch_norms_are_trained(tmp_path: Path) -> None:
    """Their statistics are those of a micro-batch."""
    item = training(tmp_path)
    assert item.with_changes(accumulate=2).name == item.name
    trained = dataclasses.replace(item, model="lw-detr-tiny")
    assert trained.with_changes(accumulate=2).name != trained.name
    fixed = dataclasses.replace(trained, fields=(("freeze_norms", True),))
    assert fixed.with_changes(accumulate=2).name == fixed.name


def all_trainings(scale: Scale) -> dict[str, Training]:
    """Return all trainings of all items, as far as they are known before anything is trained."""
    found = {}
    for item in ITEMS.values():
        try:
            plan = item.plan(scale, Choices(range(1)))
        except UsageError:
            assert item.name == "vit-h"
            continue
        for stored in plan.needed(scale.store):
            found[stored.training.name] = stored.training
    return found


@pytest.mark.parametrize("data", [None, "coco"])
def test_the_command_of_a_training_gives_the_training(
    data: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its options are read as `groupdetr train` does, and in any folder."""
    monkeypatch.chdir(tmp_path)
    store = Store(Path("out"))
    scale = Scale(store, data=None if data is None else Path(data))
    items = all_trainings(scale)
    assert len(items) > 30
    # One training for each set of options, with and without groups: to read them takes a second.
    examples: dict[object, Training] = {}
    for item in items.values():
        options_of_item = {text for text in store.run(item).command() if text.startswith("--")}
        examples.setdefault((frozenset(options_of_item), item.groups > 1), item)
    assert len(examples) > 5
    for item in examples.values():
        stored = store.run(item)
        program, command, *arguments = stored.command()
        assert (program, command) == ("groupdetr", "train")
        options: TrainOptions = read_options("train", arguments)
        assert options.settings == item.settings, item.name
        assert (options.model, options.groups) == (item.model, item.groups)
        assert options.queries in (item.queries, None)
        assert options.data == tmp_path / item.data.folder
        assert options.out == tmp_path / stored.folder
        assert options.weights_of == item.parts
        parent = stored.parent
        assert options.weights == (None if parent is None else tmp_path / parent.run.best)


def test_a_file_of_a_backbone_may_be_given_by_a_relative_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run records the absolute path of the command, and is still this training."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "backbone.pth"
    file.touch()
    store = Store(Path("out"))
    item = dataclasses.replace(training(Path()), pretrained_backbone="backbone.pth")
    stored = store.run(item)
    assert stored.command()[stored.command().index("--pretrained-backbone") + 1] == str(file)
    write_config(stored)
    stored.expect_same()


def test_items_share_their_trainings(tmp_path: Path) -> None:
    scale = Scale(Store(tmp_path))
    names = {}
    for name in ("table2", "table3", "table7", "fig1", "fig3", "fig4", "fig5", "fig8", "fig9"):
        plan = ITEMS[name].plan(scale, Choices(range(1)))
        names[name] = {stored.training.name for stored in plan.needed(scale.store)}
    assert names["fig1"] == names["table3"]
    for other in ("table2", "fig3", "fig4", "fig5", "fig8"):
        assert names[other] <= names["table3"], other
    assert names["fig5"] < names["fig8"]
    assert len(names["fig9"] & names["table3"]) == 2
    assert len(names["table7"] & names["table3"]) == 2


def test_a_folder_with_another_training_is_refused_by_name(tmp_path: Path) -> None:
    store = Store(tmp_path)
    stored = store.run(training(tmp_path))
    write_config(stored, dataclasses.replace(stored.training.settings, lr=0.5))
    with pytest.raises(UsageError, match=r"conditional-detr-tiny-k1.*lr 0.5, not 0.001") as raised:
        store.run(training(tmp_path))
    assert raised.value.where == str(stored.folder)


def test_a_folder_says_if_its_training_is_done(tmp_path: Path) -> None:
    store = Store(tmp_path)
    stored = store.run(training(tmp_path))
    assert stored.state == "absent"
    assert "--resume" not in stored.command()
    write_config(stored)
    assert stored.state == "interrupted"
    assert stored.command()[:4] == ["groupdetr", "train", "--resume", str(stored.folder)]
    stored.folder.joinpath("config.yaml").unlink()
    assert finish(training(tmp_path), store).state == "done"


def test_the_steps_of_a_dataset_of_the_user_are_read_from_the_run(tmp_path: Path) -> None:
    item = training(tmp_path)
    item = dataclasses.replace(item, data=dataclasses.replace(item.data, num_train=None))
    stored = Store(tmp_path).run(item)
    assert stored.steps is None
    stored.folder.mkdir(parents=True)
    stored.run.data.write_text('{"splits": {"train": {"images": 160}}}')
    assert stored.steps == 8 * 160 / 8
