"""Risk-coverage curves, and the errors of detections that they are made of."""

from __future__ import annotations

import numpy as np
import pytest

from groupdetr.analysis.calibration import calibrate, detection_errors, risk_by_coverage
from tests.analysis.handmade import detections, record

BOX, HALF, FAR = [0.0, 0, 10, 10], [0.0, 0, 10, 5], [50.0, 50, 60, 60]


def test_aurc_of_an_example_by_hand() -> None:
    """Sorted by uncertainty the errors are 0, 1, 0, 1: risks 0, 1/2, 1/3, 1/2."""
    uncertainty = np.array([0.4, 0.1, 0.3, 0.2])
    errors = np.array([1.0, 0, 0, 1])
    risk = risk_by_coverage(uncertainty, errors)
    np.testing.assert_allclose(risk, [0, 1 / 2, 1 / 3, 1 / 2])
    result = calibrate({"u": uncertainty}, errors == 1, errors)["u"]
    assert result.aurc == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)
    assert result.curve[[0, 50, 51, 100]].tolist() == pytest.approx([0, 1 / 2, 1 / 3, 1 / 2])


def test_the_order_of_equal_uncertainties_does_not_matter() -> None:
    """The risk is the mean over all orders, computed here one by one."""
    from itertools import permutations

    errors = np.array([0.0, 1, 1, 0, 1])
    uncertainty = np.array([0.1, 0.2, 0.2, 0.2, 0.3])
    risks = []
    for order in permutations(range(1, 4)):
        sorted_errors = errors[[0, *order, 4]]
        risks.append(sorted_errors.cumsum() / np.arange(1, 6))
    expected = np.mean(risks, axis=0)
    np.testing.assert_allclose(risk_by_coverage(uncertainty, errors), expected)
    backwards = risk_by_coverage(uncertainty[::-1].copy(), errors[::-1].copy())
    np.testing.assert_allclose(backwards, expected)


def test_a_perfect_uncertainty_has_a_lower_aurc_than_any_other_order() -> None:
    random = np.random.default_rng(0)
    errors = random.uniform(size=50)
    others = {f"random {i}": random.permutation(50) / 50 for i in range(20)}
    result = calibrate({"perfect": errors, **others}, errors > 0.5, errors)
    assert result["perfect"].correlation == pytest.approx(1)
    assert all(
        result["perfect"].aurc_box < result[name].aurc_box
        and result["perfect"].aurc < result[name].aurc
        for name in others
    )


def test_the_errors_of_detections_are_those_of_the_coco_evaluation() -> None:
    """An exact box, a duplicate of it, half of a box, a wrong class, and a box in a crowd."""
    image = record((0, BOX), (1, FAR), (0, [80.0, 80, 100, 100]), crowds=1)
    found = detections(
        (0.9, 0, BOX), (0.8, 0, BOX), (0.7, 1, [50.0, 50, 60, 56]), (0.6, 0, FAR),
        (0.5, 0, [85.0, 85, 90, 90]),
    )  # fmt: skip
    errors = detection_errors(image, found)
    assert errors.is_counted.tolist() == [True, True, True, True, False]
    assert errors.is_false[:4].tolist() == [False, True, False, True]
    assert errors.box_error[:4].tolist() == pytest.approx([0, 1, 0.4, 1])
