"""Results of several files are those of one command that trained everything."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from groupdetr.errors import UsageError
from groupdetr.paper.items import ITEMS
from groupdetr.structures.json_object import JsonObject
from groupdetr.workflows.paper import reproduce

from .test_items import results_of


def whole_of(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> JsonObject:
    """Return the results of an item with four seeds."""
    results = results_of(ITEMS[name], folder / "store", 4, monkeypatch)
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


@pytest.mark.parametrize("name", ["table1", "table2"])
def test_the_seeds_of_several_files_are_those_of_one(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seed 1 is in both files, and the machine of the second is another one.

    Some trainings of Table 1 start from another training of their seed.
    """
    whole = whole_of(name, tmp_path, monkeypatch)
    there = with_seeds(whole, [1, 2, 3])
    cores = whole["environment"]["cores"]
    there["environment"]["cores"] = cores + 1
    files = write(tmp_path, here=with_seeds(whole, [0, 1]), there=there)
    reproduce(redraw=files, out=tmp_path / "joined")
    joined = json.loads((tmp_path / f"joined/{name}/results.json").read_text())
    (other,) = joined["other_environments"]
    assert other["cores"] == cores + 1
    assert joined == {**whole, "other_environments": [other]}
    system = other["system"]
    machines = f"{cores} cores, {system}; {cores + 1} cores, {system}"
    assert machines in (tmp_path / f"joined/{name}/report.html").read_text()
    # The joined file is one of results like any other, and to join it with a part changes nothing.
    again = tmp_path / f"joined/{name}/results.json"
    reproduce(name, redraw=[str(again), files[1]], out=tmp_path / "again")
    assert (tmp_path / f"again/{name}/results.json").read_text() == again.read_text()


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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = whole_of("table2", tmp_path, monkeypatch)
    other_numbers = with_seeds(whole, [0])
    other_numbers["configurations"][0]["runs"][0]["metrics"]["AP"] += 0.1
    other_settings = with_seeds(whole, [2])
    run = other_settings["configurations"][0]["runs"][0]
    run["training"] = run["training"].replace("-n20-", "-n7-")
    other_length = with_seeds(whole, [2])  # Of a baseline of equal time, on another machine.
    run = other_length["configurations"][1]["runs"][0]
    run["training"] = re.sub(r"-[\d.]+e-", "-9e-", run["training"])
    on_coco = {**with_seeds(whole, [2]), "scale": "on COCO"}
    (here,) = write(tmp_path, here=with_seeds(whole, [0, 1]))
    for words, content in (
        ("seed 0 has other numbers", other_numbers),
        ("-n7-.* differs from .*-n20-.* in more than the seed", other_settings),
        ("-9e-.* differs from .* in more than the seed", other_length),
        ("their scale is on COCO", on_coco),
    ):
        (there,) = write(tmp_path, there=content)
        with pytest.raises(UsageError, match=words) as raised:
            reproduce(redraw=[here, there], out=tmp_path / "joined")
        assert raised.value.where == str(there)
    groups = results_of(ITEMS["fig4"], tmp_path / "store4", 1, monkeypatch)
    (fig4,) = write(tmp_path, fig4=groups.to_json())
    with pytest.raises(UsageError, match="hold more than its trainings"):
        reproduce(redraw=[fig4, fig4], out=tmp_path / "joined")
    assert not (tmp_path / "joined").exists()
