"""Random content of the tables of nuScenes is refused with a message, or it is safe to use."""

from __future__ import annotations

import contextlib
import copy
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from groupdetr.data.nuscenes.synthetic import VERSION, SyntheticNuScenesConfig, write
from groupdetr.data.nuscenes.tables import FIELDS
from groupdetr.data.nuscenes.version import check_version, load
from groupdetr.errors import GroupDETRError
from tests.data.fuzzing import FUZZ
from tests.data.test_check import ANYTHING

LIMIT = 20.0  # seconds of the processor; an example takes tenths of a second
TABLES = [*(name for name, fields in FIELDS.items() if fields), "splits"]
NUMBERS = [0, -1, 1.5, 1e308, float("nan"), float("inf"), 2**63, 10**30, True, "1", None]


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A version with two samples in each split, and the content of all of its files."""
    root = tmp_path_factory.mktemp("fuzz")
    write(SyntheticNuScenesConfig(samples=2, width=32, height=32), root)
    contents = {name: json.loads((root / VERSION / f"{name}.json").read_text()) for name in TABLES}
    return root, contents


def mutate_table(name: str, rows: Any, data: st.DataObject) -> Any:
    """Return the content of a table with a random change."""
    if name == "splits" or data.draw(st.integers(0, 9)) == 0:
        return data.draw(ANYTHING)
    index = data.draw(st.integers(0, len(rows) - 1))
    row = rows[index]
    field = data.draw(st.sampled_from(sorted(FIELDS[name])))
    action = data.draw(st.sampled_from(["any", "any", "number", "other", "delete", "repeat"]))
    if action == "any":
        row[field] = data.draw(ANYTHING)
    elif action == "number":
        # A number inside of a translation, a rotation, a matrix.
        holder, key = row, field
        while isinstance(holder[key], list) and holder[key]:
            holder, key = holder[key], data.draw(st.integers(0, len(holder[key]) - 1))
        holder[key] = data.draw(st.sampled_from(NUMBERS))
    elif action == "other":
        row[field] = copy.deepcopy(data.draw(st.sampled_from(rows))[field])
    elif action == "delete":
        del rows[index]
    else:
        rows.append(copy.deepcopy(row))
    return rows


@settings(**FUZZ)
@given(data=st.data())
def test_any_tables_are_refused_or_safe(
    data: st.DataObject, tables: tuple[Path, dict[str, Any]]
) -> None:
    root, contents = tables
    changed = set()
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(TABLES))
        changed.add(name)
        rows = mutate_table(name, copy.deepcopy(contents[name]), data)
        (root / VERSION / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
    started = time.process_time()
    try:
        expect_refused_or_safe(root)
    finally:
        for name in changed:
            content = json.dumps(contents[name])
            (root / VERSION / f"{name}.json").write_text(content, encoding="utf-8")
    assert time.process_time() - started < LIMIT


def expect_refused_or_safe(root: Path) -> None:
    """Data that check does not refuse can be read, and has finite poses and boxes."""
    report = check_version(root, two_frames=True)
    event(report.verdict)
    assert report.render()
    if report.verdict == "refuse":
        # Some problems are found by the check alone, because it opens the images.
        with contextlib.suppress(GroupDETRError):
            load(root)
        return
    version = load(root)
    for samples in version.splits.values():
        for sample in samples:
            boxes, labels = sample.trainable_objects()
            assert np.isfinite(boxes).all()
            assert (boxes[:, 3:6] > 0).all()
            assert len(labels) == len(boxes)
            frames = [sample.frame()]
            frames += [sample.earlier_frame(i) for i in range(len(sample.earlier_indices))]
            for frame in frames:
                assert np.isfinite(frame.lidar_to_image).all()
                assert np.isfinite(frame.ages(sample.time)).all()
                assert all(path.is_relative_to(root) and path.is_file() for path in frame.paths)


@settings(**FUZZ)
@given(content=st.binary(max_size=60), name=st.sampled_from(TABLES))
def test_any_bytes_of_a_table_are_refused(
    content: bytes, name: str, tables: tuple[Path, dict[str, Any]]
) -> None:
    root, contents = tables
    file = root / VERSION / f"{name}.json"
    file.write_bytes(content)
    try:
        assert check_version(root).verdict == "refuse"
    finally:
        file.write_text(json.dumps(contents[name]), encoding="utf-8")
