"""The nuScenes detection score, by cases whose figures are known beforehand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from groupdetr.evaluation.boxes3d import CLASSES, Boxes3D
from groupdetr.evaluation.nuscenes import ERRORS, FIGURES, ClassScore, Evaluation, Scene, evaluate
from tests.evaluation.worlds import boxes, guesses, quaternions, random_world

NAMES = [kind.name for kind in CLASSES]
ATTRIBUTES = [kind.moving for kind in CLASSES]


def one_of_each(**columns: object) -> Boxes3D:
    """A box of every class, 10 m from the vehicle and 5 m apart."""
    centres = [[10 * math.cos(a), 10 * math.sin(a), 0] for a in np.arange(10) * 2 * np.pi / 10]
    return boxes(centres, range(10), **{"attributes": ATTRIBUTES} | columns)


def answer(truth: Boxes3D) -> Boxes3D:
    return replace(truth, scores=np.ones(len(truth)), points=None)


def scored(found: Boxes3D, truth: Boxes3D, racks: Boxes3D | None = None) -> Evaluation:
    return evaluate([Scene(np.zeros(3), truth, racks)], [found])


def close(a: float, b: float, within: float = 1e-9) -> bool:
    return abs(a - b) < within


def row(result: Evaluation, name: str) -> ClassScore:
    return result.per_class[NAMES.index(name)]


def test_the_truth_scores_one() -> None:
    result = scored(answer(one_of_each()), one_of_each())
    assert list(result.stats.values()) == pytest.approx([1, 1, 0, 0, 0, 0, 0])


def test_nothing_found_scores_zero() -> None:
    found = answer(one_of_each())
    for nothing in (found[found.scores > 1], replace(found, centres=found.centres + 1000)):
        result = scored(nothing, one_of_each())
        assert list(result.stats.values()) == [0, 0, 1, 1, 1, 1, 1]


CHANGES: dict[str, Callable[[Boxes3D], Boxes3D]] = {
    "no velocities": lambda found: replace(found, velocities=found.velocities * np.nan),
    "wrong velocities": lambda found: replace(found, velocities=found.velocities + 2),
    "no attributes": lambda found: replace(found, attributes=np.full(len(found), "")),
}


@pytest.mark.parametrize("name", CHANGES)
def test_an_error_that_is_one_costs_a_tenth(name: str) -> None:
    stats = scored(CHANGES[name](answer(one_of_each())), one_of_each()).stats
    assert close(stats["mAP"], 1)
    assert close(stats["NDS"], 0.9)


def test_a_score_of_zero_finds_but_its_errors_are_those_of_nothing_found() -> None:
    found = answer(one_of_each())
    stats = scored(replace(found, scores=found.scores * 0), one_of_each()).stats
    assert close(stats["mAP"], 1)
    assert close(stats["NDS"], 0.5)


def test_a_class_that_does_not_occur_counts_as_one_not_found() -> None:
    truth = one_of_each()
    result = scored(answer(truth), truth[truth.labels != 0])
    car = row(result, "car")
    assert (car.AP, car.ATE, car.AAE, car.objects, car.samples) == (0, 1, 1, 0, 0)
    assert close(result.stats["mAP"], 0.9)


def test_unknown_truth_is_in_no_mean() -> None:
    truth = one_of_each()
    truth.velocities[0], truth.attributes[0] = np.nan, ""
    result = scored(answer(one_of_each()), truth)
    assert (row(result, "car").AVE, row(result, "car").AAE) == (1, 1), (
        "nothing is known of the only car"
    )
    twice = boxes(
        [[0, 0, 0], [10, 0, 0]],
        velocities=[[np.nan, np.nan], [0, 0]],
        attributes=["", "vehicle.parked"],
    )
    found = answer(
        replace(
            twice,
            velocities=np.full((2, 2), [3.0, 4.0]),
            attributes=np.array(["vehicle.parked"] * 2),
        )
    )
    car = row(scored(replace(found, scores=np.array([0.1, 0.9])), twice), "car")
    assert (car.AVE, car.AAE) == (5, 0)


def test_distances_decide_what_is_hit() -> None:
    """Strictly nearer: 0.5 m apart is no hit at 0.5 m."""
    truth = boxes([[0, 0, 0]])
    for apart, hit in ((0.49, 4), (0.5, 3), (1.5, 2), (3.9, 1), (4.0, 0)):
        car = row(scored(answer(boxes([[apart, 0, 7.0]])), truth), "car")
        assert close(sum(car.AP_by_distance), hit)
        assert close(car.ATE, apart if apart < 2 else 1), "heights do not count"


def test_orientation_has_a_period_of_a_turn_but_of_barriers_half_a_turn() -> None:
    truth = one_of_each(rotations=quaternions(np.full(10, 3.0), np.zeros((10, 2))))
    turned = replace(
        truth, rotations=quaternions(np.full(10, 3.0 + 0.9 * np.pi), np.full((10, 2), 0.01))
    )
    result = scored(answer(turned), truth)
    assert close(row(result, "car").AOE, 0.9 * np.pi, 1e-3)
    assert close(row(result, "barrier").AOE, 0.1 * np.pi, 1e-3)


def test_sizes_are_compared_side_by_side() -> None:
    truth = one_of_each()
    result = scored(answer(replace(truth, sizes=truth.sizes[:, [1, 0, 2]])), truth)
    assert close(result.stats["mASE"], 1 - 4 / 12)


def test_cones_and_barriers_have_errors_that_do_not_exist() -> None:
    result = scored(answer(one_of_each()), one_of_each())
    undefined = {r.name: {e for e in ERRORS if math.isnan(getattr(r, e))} for r in result.per_class}
    assert {name: errors for name, errors in undefined.items() if errors} == {
        "traffic_cone": {"AOE", "AVE", "AAE"},
        "barrier": {"AVE", "AAE"},
    }


def test_an_object_is_hit_once_and_the_better_chooses_first() -> None:
    truth = boxes([[0, 0, 0], [10, 0, 0]])
    found = boxes([[0.3, 0, 0], [0.1, 0, 0]], scores=[0.9, 0.8])
    car = row(scored(found, truth), "car")
    assert close(car.ATE, 0.3)
    assert car.AP < 0.5


def test_of_equal_scores_the_later_chooses_first() -> None:
    truth = boxes([[0, 0, 0]])
    found = boxes([[0.3, 0, 0], [0.1, 0, 0]], scores=[0.5, 0.5])
    assert close(row(scored(found, truth), "car").ATE, 0.1)


@pytest.mark.parametrize("kind", CLASSES, ids=NAMES)
def test_what_is_out_of_reach_does_not_count(kind: object) -> None:
    label = CLASSES.index(kind)
    near, far = ([[0, CLASSES[label].reach + step, 9.0]] for step in (-0.01, 0.0))
    assert close(row(scored(answer(boxes(near, label)), boxes(near, label)), kind.name).AP, 1)
    result = row(scored(answer(boxes(near, label)), boxes(far, label)), kind.name)
    assert (result.objects, result.AP) == (0, 0)


def test_reach_is_measured_from_the_vehicle() -> None:
    there = boxes([[600, 1600, 0]])
    for ego, objects in (([555, 1600, 0], 1), ([0, 0, 0], 0)):
        assert (
            row(evaluate([Scene(np.array(ego), there)], [answer(there)]), "car").objects == objects
        )


def test_a_tenth_of_the_objects_is_as_good_as_none() -> None:
    truth = boxes([[4 * x, 4 * y, 0] for x in range(10) for y in range(10)])
    for hits, reached in ((10, False), (12, True)):
        car = row(scored(answer(truth)[np.arange(hits)], truth), "car")
        assert (car.AP > 0, car.ATE < 1) == (reached, reached)


def test_objects_that_nothing_was_measured_of_do_not_count() -> None:
    truth = boxes([[0, 0, 0], [10, 0, 0], [20, 0, 0]], points=[0, 1, 7])
    assert row(scored(answer(truth), truth), "car").objects == 2


def test_cycles_in_a_rack_do_not_count_but_cars_do() -> None:
    """The rack, 2 m wide and 6 m long, looks along y."""
    rack = boxes(
        [[0, 0, 0]],
        sizes=[[2.0, 6.0, 2.0]],
        rotations=quaternions(np.array([np.pi / 2]), np.zeros((1, 2))),
    )
    places = [[0, 2.9, 0], [0, -2.5, 0], [0.9, 0, 0.9], [2.9, 0, 0], [0, 0, 1.1]]
    for name, objects in (("bicycle", 2), ("motorcycle", 2), ("car", 5)):
        there = boxes(places, NAMES.index(name))
        result = row(scored(answer(there), there, rack), name)
        assert (result.objects, result.AP) == (objects, pytest.approx(1))


def test_scenes_do_not_mix() -> None:
    truth = boxes([[0, 0, 0]])
    scenes = [Scene(np.zeros(3), truth), Scene(np.zeros(3), truth[truth.labels > 0])]
    nothing = answer(truth)[truth.labels > 0]
    assert row(evaluate(scenes, [nothing, answer(truth)]), "car").AP == 0
    assert close(row(evaluate(scenes, [answer(truth), nothing]), "car").AP, 1)
    with pytest.raises(ValueError, match="1 scenes for 2"):
        evaluate(scenes, [nothing])


def test_a_result_survives_its_file_and_puts_first_what_decides() -> None:
    world = random_world(0)
    result = evaluate(world.scenes, guesses(0, world))
    content = json.loads(json.dumps(result.to_json(), allow_nan=False))
    again = Evaluation.from_json(content)
    assert again.stats == result.stats
    assert repr(again) == repr(result), "undefined errors, too"
    assert next(iter(result.stats)) == FIGURES[0] == "NDS"
