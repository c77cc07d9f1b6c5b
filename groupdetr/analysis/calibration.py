"""How well an uncertainty predicts the errors of detections.

The area under the risk-coverage curve (AURC; Geifman, Uziel and El-Yaniv 2019, arXiv 1805.08206)
and Spearman's rank correlation. Both only use the order of the uncertainties, so measures with
other scales are compared fairly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from groupdetr.data.records import Record
from groupdetr.evaluation.matching import NO_OBJECT, match_image
from groupdetr.evaluation.nan_json import nan_to_none
from groupdetr.structures.detections import Detections
from groupdetr.structures.json_object import JsonObject

CURVE_POINTS = 101  # of a risk-coverage curve in a file


@dataclass(frozen=True)
class DetectionErrors:
    """The errors of the D detections of one image."""

    is_false: NDArray[np.bool_]  # [D] True for a false positive at an IoU of 0.5
    box_error: NDArray[np.float64]  # [D] 1 - IoU with the matched object; 1 for false positives
    is_counted: NDArray[np.bool_]  # [D] False for detections in crowds, which are ignored


@dataclass(frozen=True)
class Calibration:
    """How well one uncertainty predicts the errors of detections."""

    aurc: float  # of the false positives; lower is better
    aurc_box: float  # of 1 - IoU; lower is better
    correlation: float  # Spearman's, with 1 - IoU; higher is better; nan if one is constant
    curve: NDArray[np.float64]  # [101] the part of false positives by coverage 0, 0.01, ..., 1

    def to_json(self) -> JsonObject:
        """Return plain data for a file. The curve is rounded to five digits."""
        numbers = {
            "aurc": self.aurc,
            "aurc_box": self.aurc_box,
            "correlation": self.correlation,
        }
        return {**nan_to_none(numbers), "curve": self.curve.round(5).tolist()}


def detection_errors(record: Record, detections: Detections, kind: str = "box") -> DetectionErrors:
    """Return the errors of the detections of one image, matched as in COCO's evaluation.

    ``kind`` is what the IoU is computed of, "box" or "mask".
    """
    matches = match_image(record, detections, kind)
    is_true = matches.object > NO_OBJECT
    box_error = np.ones(len(detections))
    rows = np.flatnonzero(is_true)
    box_error[rows] = 1 - matches.ious[rows, matches.object[rows]]
    return DetectionErrors(~is_true, box_error, matches.object >= NO_OBJECT)


def calibrate(
    uncertainties: Mapping[str, NDArray[np.float64]],
    is_false: NDArray[np.bool_],
    box_error: NDArray[np.float64],
) -> dict[str, Calibration]:
    """Return the calibration of each of the ``uncertainties``, all [D], by name.

    `ValueError` if there is no detection.
    """
    result = {}
    for name, uncertainty in uncertainties.items():
        risk = risk_by_coverage(uncertainty, is_false.astype(float))
        coverage = np.linspace(0, 1, CURVE_POINTS)
        result[name] = Calibration(
            aurc=float(risk.mean()),
            aurc_box=float(risk_by_coverage(uncertainty, box_error).mean()),
            correlation=_rank_correlation(uncertainty, box_error),
            curve=risk[(np.ceil(coverage * len(risk)).astype(int) - 1).clip(min=0)],
        )
    return result


def risk_by_coverage(
    uncertainty: NDArray[np.float64], errors: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the mean error of the n least uncertain detections, for n = 1 ... D: [D].

    Its mean is the area under the risk-coverage curve. Where detections have the same uncertainty,
    every order of them is as likely, and the expected mean error is returned.

    >>> risk_by_coverage(np.array([0.1, 0.2, 0.2]), np.array([0.0, 1.0, 0.0]))
    array([0.        , 0.25      , 0.33333333])
    """
    if len(errors) == 0:
        raise ValueError("without detections there is no risk")
    order = np.argsort(uncertainty, kind="stable")
    _, first, count = np.unique(uncertainty[order], return_index=True, return_counts=True)
    # The mean error of all detections that have the same uncertainty, for each of them.
    expected = np.repeat(np.add.reduceat(errors[order], first) / count, count)
    risk: NDArray[np.float64] = expected.cumsum() / np.arange(1, len(errors) + 1)
    return risk


def _rank_correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return Spearman's rank correlation; nan if it is undefined."""
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    return float(spearmanr(a, b).statistic)
