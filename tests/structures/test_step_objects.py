"""The objects of an optimizer step are those of all of its images, in parts of equal size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from groupdetr.structures.step_objects import StepObjects


@pytest.mark.parametrize(
    ("counts", "parts", "message"),
    [
        ([3, 1, 2], 2, "3 images cannot be divided into 2 parts of equal size"),
        ([3, -1], 1, "every number in counts must be a whole number of 0 or more, not -1"),
        ([1.5], 1, "not 1.5"),
        (4, 1, "counts must be a list with the number of objects of every image"),
        ([4], 0, "parts must be a whole number of 1 or more, not 0"),
    ],
)
def test_impossible_steps_are_refused(counts: Any, parts: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StepObjects(counts, parts)


@pytest.mark.parametrize(
    "counts", [[2, 0], (2, 0), [np.int64(2), np.int32(0)], [torch.tensor(2), torch.tensor(0)]]
)
def test_any_sequence_of_whole_numbers_is_accepted(counts: Any) -> None:
    assert sum(StepObjects(counts, parts=2).counts) == 2
