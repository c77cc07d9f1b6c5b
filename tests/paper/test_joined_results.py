"""Results of several files are those of one command that trained everything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from groupdetr.errors import UsageError
from groupdetr.paper.items import ITEMS
from groupdetr.paper.results import Results
from groupdetr.structures.json_object import JsonObject
from groupdetr.workflows.paper import reproduce

from .test_items import results_of


@pytest.fixture
def whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JsonObject:
    """Table 2 with four seeds."""
    results = results_of(ITEMS["table2"], tmp_path / "store", 4, monkeypatch)
    return json.loads(json.dumps(results.to_json()))


def with_seeds(content: JsonObject, seeds: list[int]) -> JsonObject:
    part = json.loads(json.dumps(content))
    part["protocol"]["Seeds"] = ", ".join(map(str, seeds))
    for configuration in part["configurations"]:
        configuration["runs"] = [run for run in configuration["runs"] if run["seed"] in seeds]
    return part


def write(folder: Path, **contents: JsonObject) -> list[Path]:
    files = []
    for name, content in contents.items():
        files.append(folder / f"{name}.json")
        files[-1].write_text(json.dumps(content))
    return files


def test_the_seeds_of_several_files_are_those_of_one(whole: JsonObject, tmp_path: Path) -> None:
    """Seed 1 is in both files, and the machine of the second is another one."""
    there = with_seeds(whole, [1, 2, 3])
    there["environment"]["cores"] = 96
    files = write(tmp_path, here=with_seeds(whole, [0, 1]), there=there)
    reproduce(redraw=files, out=tmp_path / "joined")
    joined = json.loads((tmp_path / "joined/table2/results.json").read_text())
    (other,) = joined["other_environments"]
    assert other["cores"] == 96
    assert joined == {**whole, "other_environments": [other]}
    assert "2 cores" in (page := (tmp_path / "joined/table2/report.html").read_text())
    assert "; 96 cores" in page
    # The joined file is one of results like any other, and to join it with a part changes nothing.
    again = tmp_path / "joined/table2/results.json"
    reproduce("table2", redraw=[str(again), files[1]], out=tmp_path / "again")
    assert (tmp_path / "again/table2/results.json").read_text() == again.read_text()


def test_the_detectors_of_several_files_are_rows_of_one_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = results_of(ITEMS["table3"], tmp_path / "store", 2, monkeypatch).to_json()
    names = [configuration["family"] for configuration in whole["configurations"]]
    parts = []
    for family in dict.fromkeys(names):
        part = json.loads(json.dumps(whole))
        rows = [row for row in whole["configurations"] if row["family"] == family]
        keys = [row["key"] for row in rows]
        part["configurations"] = rows
        part["gains"] = [gain for gain in whole["gains"] if gain["over"] in keys]
        part["protocol"]["Detectors"] = rows[0]["details"]["model"]
        parts.append(part)
    files = write(tmp_path, **{f"part{number}": part for number, part in enumerate(parts)})
    reproduce("table3", redraw=files, out=tmp_path / "joined")
    joined = json.loads((tmp_path / "joined/table3/results.json").read_text())
    for name in ("configurations", "gains", "protocol"):
        assert joined[name] == json.loads(json.dumps(whole[name])), name


def test_results_that_do_not_belong_together_are_refused(
    whole: JsonObject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other_numbers = with_seeds(whole, [0])
    other_numbers["configurations"][0]["runs"][0]["metrics"]["AP"] += 0.1
    other_settings = with_seeds(whole, [2])
    other_settings["configurations"][0]["details"]["queries"] = "7"
    on_coco = {**with_seeds(whole, [2]), "scale": "on COCO"}
    (here,) = write(tmp_path, here=with_seeds(whole, [0, 1]))
    for words, content in (
        ("seed 0 has other numbers", other_numbers),
        ("have other settings", other_settings),
        ("their scale is on COCO", on_coco),
    ):
        (there,) = write(tmp_path, there=content)
        with pytest.raises(UsageError, match=words) as raised:
            reproduce(redraw=[here, there], out=tmp_path / "joined")
        assert raised.value.where == str(there)
    groups = results_of(ITEMS["fig4"], tmp_path / "store4", 1, monkeypatch)
    assert isinstance(groups, Results)
    (fig4,) = write(tmp_path, fig4=groups.to_json())
    with pytest.raises(UsageError, match="hold more than its trainings"):
        reproduce(redraw=[fig4, fig4], out=tmp_path / "joined")
    assert not (tmp_path / "joined").exists()
