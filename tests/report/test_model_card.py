"""The model card of a detector on the Hugging Face hub."""

from __future__ import annotations

import pytest

from groupdetr.detectors.tiny import TinyConditionalDETR
from groupdetr.report.model_card import model_card


@pytest.mark.parametrize(
    ("num_groups", "inference_group", "expected"),
    [
        (1, 0, "1 of 50 queries"),
        (3, 2, "3 of 50 queries; one of them detects"),
        (3, None, "3 of 50 queries; all of them detect"),
    ],
)
def test_a_card_tells_which_groups_detect(
    num_groups: int, inference_group: int | None, expected: str
) -> None:
    recipe = TinyConditionalDETR(
        num_groups=num_groups, num_queries=50, inference_group=inference_group
    )
    card = model_card("me/cats", recipe, ["cat"], 128, "box", None, None)
    (line,) = (line for line in card.splitlines() if "groups in training" in line)
    assert line == f"| groups in training | {expected} |"
