"""`groupdetr compare`: which runs are one configuration, and what is compared with what."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from groupdetr.cli.main import main
from groupdetr.errors import UsageError
from groupdetr.paper.trainings import Store
from groupdetr.workflows import compare as workflow
from groupdetr.workflows.compare import compare, image_sections
from tests.json_docs import assert_documented
from tests.paper.stored import fingerprint, finish, training, write_config


@pytest.fixture(autouse=True)
def _without_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs of these tests have no weights, so they detect nothing."""
    monkeypatch.setattr(workflow, "image_sections", lambda *_: [])


def runs(
    folder: Path, groups: int, ap_of_seeds: dict[int, float], epochs: float = 8.0
) -> list[str | Path]:
    """Write the folders of runs that differ only in their seed, and return them."""
    store = Store(folder)
    folders: list[str | Path] = []
    for seed, ap in ap_of_seeds.items():
        item = training(folder, groups, epochs, seed)
        folders.append(finish(item, store, cpu_seconds=10.0 + groups, ap=ap).folder)
    return folders


def test_runs_that_differ_only_in_their_seed_are_one_configuration(tmp_path: Path) -> None:
    base = runs(tmp_path, 1, {0: 0.2, 1: 0.3, 2: 0.4})
    grouped = runs(tmp_path, 6, {2: 0.5, 0: 0.4})
    results = compare([*grouped, *base], out=tmp_path / "out").results
    first, second = results.configurations
    assert (first.label, first.seeds, first.baseline) == ("K = 1", [0, 1, 2], True)
    assert (second.label, second.seeds, second.baseline) == ("K = 6", [0, 2], False)
    (row,) = results.to_json()["gains"]
    assert row["gain"] == pytest.approx(15), "20 with seed 0, and 10 with seed 2"
    assert row["seeds"] == 2


def test_groups_are_compared_with_every_baseline_of_their_model(tmp_path: Path) -> None:
    base = runs(tmp_path, 1, {0: 0.2})
    longer = runs(tmp_path, 1, {0: 0.3}, epochs=10.0)
    grouped = runs(tmp_path, 6, {0: 0.5})
    results = compare([*base, *longer, *grouped], out=tmp_path / "out").results
    assert [row.label for row in results.gains] == [
        "K = 6, 8 epochs over K = 1, 8 epochs",
        "K = 6, 8 epochs over K = 1, 10 epochs",
    ]
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert "At equal CPU time" in page
    assert 'class="name"' in page


def test_the_label_of_a_configuration_says_in_what_it_differs(tmp_path: Path) -> None:
    (run,) = runs(tmp_path, 1, {0: 0.2})
    other = training(tmp_path, 1).with_changes(lr=0.5)
    folder = finish(other, Store(tmp_path)).folder
    results = compare([run, folder], out=tmp_path / "out").results
    assert {item.label for item in results.configurations} == {"K = 1, lr 0.001", "K = 1, lr 0.5"}


def test_the_detections_under_the_name_of_a_configuration_are_those_of_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Baselines are moved to the front, and their runs with them."""
    shown: dict[str, Path] = {}
    monkeypatch.setattr(workflow, "image_sections", lambda runs, *_: shown.update(runs) or [])
    (grouped,), (base,) = runs(tmp_path, 6, {0: 0.5}), runs(tmp_path, 1, {0: 0.2})
    compare([grouped, base], out=tmp_path / "out")
    assert list(shown.items()) == [("K = 1", base), ("K = 6", grouped)]


def test_runs_whose_data_or_weights_are_gone_have_a_page_of_their_curves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(workflow, "image_sections", image_sections)
    compare([*runs(tmp_path, 1, {0: 0.2}), *runs(tmp_path, 6, {0: 0.5})], out=tmp_path / "out")
    what = "The detections of these runs cannot be shown"
    assert what in " ".join(capsys.readouterr().out.split())
    page = (tmp_path / "out/report.html").read_text()
    assert what in page
    assert "+30.0" in page


def test_runs_in_folders_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    """One may be a copy with other weights. The same run is never compared with itself."""
    folders = []
    for folder, ap in ((tmp_path / "a", 0.2), (tmp_path / "b", 0.6)):
        folders.append(finish(training(tmp_path), Store(folder), ap=ap).folder)
    same = folders[0].parent / ".." / folders[0].relative_to(tmp_path / "a")
    results = compare([*folders, same], out=tmp_path / "out").results
    assert [item.percentages("AP") for item in results.configurations] == [[20], [60]]
    assert [row["gain"] for row in results.to_json()["gains"]] == [40]
    with pytest.raises(UsageError, match="two runs or more"):
        compare([folders[0], same], out=tmp_path / "out")


def test_runs_on_a_dataset_that_has_changed_are_no_seeds_of_one_configuration(
    tmp_path: Path,
) -> None:
    folders = runs(tmp_path, 1, {0: 0.2, 1: 0.4, 2: 0.6})
    for folder, content in zip(folders, ("before", "before", "now")):
        data = {"fingerprint": fingerprint(content)}
        (Path(folder) / "data.json").write_text(json.dumps(data))
    results = compare(folders, out=tmp_path / "out").results
    assert [item.seeds for item in results.configurations] == [[0, 1], [2]]
    assert len({item.key for item in results.configurations}) == 2


def test_a_gain_between_runs_of_different_seeds_is_not_that_of_one_seed(tmp_path: Path) -> None:
    base, grouped = runs(tmp_path, 1, {0: 0.2, 1: 0.3}), runs(tmp_path, 6, {2: 0.4, 3: 0.5})
    results = compare([*base, *grouped], out=tmp_path / "out").results
    (row,) = results.to_json()["gains"]
    assert (row["gain"], row["seeds"], row["low"]) == (20, 0, None)
    table = (tmp_path / "out/table.md").read_text(encoding="utf-8")
    assert "| +20.0 | no seed in common |" in table
    assert "one seed" not in table + (tmp_path / "out/report.html").read_text(encoding="utf-8")


def test_runs_without_a_metric_or_a_measured_memory_have_a_page(tmp_path: Path) -> None:
    """No validation image has an object, or the system does not tell the memory of a process."""
    folders = []
    for groups in (1, 6):
        stored = finish(training(tmp_path, groups), Store(tmp_path), ap=None)
        log = stored.run.log.read_text().replace('"peak_memory_mb": 100.0', '"peak_memory_mb": 0.0')
        stored.run.log.write_text(log)
        folders.append(stored.folder)
    compare(folders, out=tmp_path / "out")
    for name in ("report.html", "table.md"):
        assert not re.search(r"\bnan\b", (tmp_path / "out" / name).read_text(encoding="utf-8"))


def test_the_output_of_the_command_is_documented(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [*runs(tmp_path, 1, {0: 0.2, 1: 0.3}), *runs(tmp_path, 6, {0: 0.4, 1: 0.6})]
    capsys.readouterr()
    assert main(["compare", *map(str, folders), "--out", str(tmp_path / "out"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert_documented("paper: results", printed)
    assert printed == json.loads((tmp_path / "out/results.json").read_text(encoding="utf-8"))
    assert "| K = 6 | 6 | 8 | 40.0 / 60.0 |" in (tmp_path / "out/table.md").read_text()


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    (boxes,) = runs(tmp_path, 1, {0: 0.2})
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="two runs or more"):
        compare([boxes, boxes], out=out)
    store = Store(tmp_path)
    masks = dataclasses.replace(training(tmp_path), model="mask2former-tiny")
    with pytest.raises(UsageError, match="metrics are of box and of mask"):
        compare([boxes, finish(masks, store).folder], out=out)
    unfinished = store.run(training(tmp_path, groups=3))
    write_config(unfinished)
    with pytest.raises(UsageError, match="not been evaluated") as raised:
        compare([boxes, unfinished.folder], out=out)
    assert f"--resume {unfinished.folder}" in raised.value.remedy
    assert not out.exists()
