"""What is computed of all records at once equals what is computed of one after the other."""

from __future__ import annotations

import numpy as np
import pytest

from groupdetr.data.coco import read_split
from groupdetr.data.records import ObjectColumns, PackedRecords
from tests.data.conftest import Sample


@pytest.mark.parametrize("rows", [[0, 1, 2], [2, 0], []])
def test_objects_of_packed_records_are_those_of_their_records(
    sample: Sample, rows: list[int]
) -> None:
    # Image 0 has a crowd and a box outside, image 1 one object, image 2 only a box without area.
    annotations = sample.train["annotations"]
    annotations[0]["iscrowd"] = 1
    annotations[1]["bbox"] = [70, 5, 20, 30]
    annotations[3]["bbox"] = [5, 5, 0, 30]
    annotations.append(annotations[2] | {"id": 9, "image_id": 0, "bbox": [50, -5, 20, 30]})
    root = sample.save()
    table = read_split(root / "train.json", root / "images", "train").records.table  # type: ignore[attr-defined]
    records = PackedRecords(table, np.array(rows, dtype=np.int64))
    packed, single = ObjectColumns.from_records(records), ObjectColumns.from_records(list(records))
    for name in ("counts", "corners", "labels"):
        first, second = getattr(packed, name), getattr(single, name)
        assert first.dtype == second.dtype
        assert np.array_equal(first, second)
    assert packed.crowds == single.crowds == (0 in rows)
    assert packed.counts.tolist() == [[1, 1, 0][row] for row in rows]
