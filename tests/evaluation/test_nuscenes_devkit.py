"""Our nuScenes detection score equals that of nuscenes-devkit 1.2.0, as do our splits.

Every class and threshold is compared. The devkit needs numpy 1, so it runs in an environment of its
own. The environment variable GROUPDETR_DEVKIT_PYTHON names its Python.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from groupdetr.data.nuscenes.names import ATTRIBUTES
from groupdetr.data.nuscenes.splits import official_splits
from groupdetr.evaluation.boxes3d import CLASSES, Boxes3D
from groupdetr.evaluation.nuscenes import DISTANCE_THRESHOLDS, evaluate
from groupdetr.evaluation.nuscenes_results import read_results, write_results
from tests.evaluation.random_samples import (
    SECONDS,
    RandomSamples,
    random_predictions,
    random_samples,
)

pytestmark = [pytest.mark.slow, pytest.mark.fair_sample]

DEVKIT = """
import json, sys
from nuscenes import NuScenes
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.detection.evaluate import DetectionEval

for root in sys.argv[1:]:
    data = NuScenes(version="v1.0-random", dataroot=root, verbose=False)
    config = config_factory("detection_cvpr_2019")
    results, out = root + "/results.json", root + "/out"
    run = DetectionEval(data, config, results, "random", out, verbose=False)
    with open(root + "/metrics.json", "w") as file:
        json.dump(run.evaluate()[0].serialize(), file)
"""
SPLITS = """
import json
from nuscenes.utils.splits import create_splits_scenes

print(json.dumps(create_splits_scenes()))
"""
ERRORS = {
    "ATE": "trans_err",
    "ASE": "scale_err",
    "AOE": "orient_err",
    "AVE": "vel_err",
    "AAE": "attr_err",
}
CATEGORIES = {
    "barrier": "movable_object.barrier",
    "bicycle": "vehicle.bicycle",
    "bus": "vehicle.bus.rigid",
    "car": "vehicle.car",
    "construction_vehicle": "vehicle.construction",
    "motorcycle": "vehicle.motorcycle",
    "pedestrian": "human.pedestrian.adult",
    "traffic_cone": "movable_object.trafficcone",
    "trailer": "vehicle.trailer",
    "truck": "vehicle.truck",
    "rack": "static_object.bicycle_rack",
}


def write_tables(root: Path, samples: RandomSamples) -> None:
    """Write the tables of a dataset that has nothing but the ground truth of ``samples``."""
    folder = root / "v1.0-random"
    folder.mkdir(parents=True)
    annotations: list[dict] = []
    for i in range(len(samples.ground_truth)):
        annotations += annotations_of(samples, i)
    category_of_instance = {row["instance_token"]: row.pop("category") for row in annotations}

    sample_rows, sample_data, ego_poses = [], [], []
    for i, (token, truth) in enumerate(zip(samples.tokens, samples.ground_truth)):
        sample_rows.append(
            {
                "token": token,
                "timestamp": round(i * SECONDS * 1e6),
                "scene_token": "scene",
                "prev": "",
                "next": "",
            }
        )
        sample_data.append(
            {
                "token": token,
                "sample_token": token,
                "ego_pose_token": token,
                "calibrated_sensor_token": "lidar",
                "is_key_frame": True,
            }
        )
        ego_poses.append({"token": token, "translation": truth.ego.tolist()})

    tables = {
        "category": [{"token": name, "name": name} for name in CATEGORIES.values()],
        "attribute": [{"token": name, "name": name} for name in ATTRIBUTES],
        "visibility": [],
        "instance": [
            {"token": token, "category_token": category}
            for token, category in category_of_instance.items()
        ],
        "sensor": [{"token": "lidar", "channel": "LIDAR_TOP", "modality": "lidar"}],
        "calibrated_sensor": [{"token": "lidar", "sensor_token": "lidar"}],
        "ego_pose": ego_poses,
        "log": [{"token": "log"}],
        "scene": [{"token": "scene", "name": "scene-1"}],
        "sample": sample_rows,
        "sample_data": sample_data,
        "sample_annotation": annotations,
        "map": [{"token": "map", "log_tokens": ["log"], "filename": "map.png"}],
    }
    for name, rows in tables.items():
        (folder / f"{name}.json").write_text(json.dumps(rows))
    (folder / "splits.json").write_text(json.dumps({"random": ["scene-1"]}))
    Image.new("L", (4, 4)).save(root / "map.png")


def annotations_of(samples: RandomSamples, i: int) -> list[dict]:
    """Return the rows of the boxes and bicycle racks of sample ``i``.

    Boxes are linked to those of the same object in the samples before and after.
    """
    truth, token = samples.ground_truth[i], samples.tokens[i]
    objects_before = set(samples.instances[i - 1]) if i > 0 else set()
    is_last = i + 1 == len(samples.ground_truth)
    objects_after = set() if is_last else set(samples.instances[i + 1])
    rows = []
    for k, instance in enumerate(samples.instances[i]):
        attribute = str(truth.boxes.attributes[k])
        name = CLASSES[truth.boxes.labels[k]].name
        row = annotation(f"object{instance}", token, truth.boxes, k, name)
        row["token"] = f"object{instance}@{i}"
        row["attribute_tokens"] = [attribute] if attribute else []
        row["prev"] = f"object{instance}@{i - 1}" if instance in objects_before else ""
        row["next"] = f"object{instance}@{i + 1}" if instance in objects_after else ""
        row["num_lidar_pts"] = int(truth.boxes.points[k])
        rows.append(row)
    for k in range(len(truth.bicycle_racks)):
        rows.append(annotation(f"rack{i}-{k}", token, truth.bicycle_racks, k, "rack"))
    return rows


def annotation(instance: str, token: str, boxes: Boxes3D, k: int, name: str) -> dict:
    return {
        "token": instance,
        "sample_token": token,
        "instance_token": instance,
        "category": CATEGORIES[name],
        "attribute_tokens": [],
        "translation": boxes.centres[k].tolist(),
        "size": boxes.sizes[k].tolist(),
        "rotation": boxes.rotations[k].tolist(),
        "num_lidar_pts": 5,
        "num_radar_pts": 0,
        "prev": "",
        "next": "",
    }


Case = tuple[RandomSamples, list[Boxes3D]]


def changed_predictions(change: Callable[[Boxes3D], Boxes3D], seed: int = 3) -> Case:
    """Random predictions after ``change``."""
    samples = random_samples(seed)
    return samples, [change(boxes) for boxes in random_predictions(seed, samples)]


def changed_ground_truth(change: Callable[[Boxes3D], Boxes3D], seed: int = 4) -> Case:
    """The ground truth as predictions, evaluated against the ground truth after ``change``."""
    samples = random_samples(seed)
    ground_truth, predictions = [], []
    for truth in samples.ground_truth:
        ground_truth.append(replace(truth, boxes=change(truth.boxes)))
        scores = np.ones(len(truth.boxes))
        predictions.append(replace(truth.boxes, scores=scores, points=None))
    return replace(samples, ground_truth=ground_truth), predictions


def random_case(seed: int, noise: float = 1.0, classes: Sequence[int] = range(10)) -> Case:
    samples = random_samples(seed, classes=classes)
    return samples, random_predictions(seed, samples, noise)


CASES: dict[str, Callable[[], Case]] = {
    **{
        f"random-{seed}": lambda seed=seed: random_case(seed, noise=(0.2, 0.6, 2.0)[seed % 3])
        for seed in range(3)
    },
    "truth": lambda: changed_ground_truth(lambda truth: truth),
    "truth-without-attributes": lambda: changed_ground_truth(
        lambda truth: replace(truth, attributes=np.full(len(truth), ""))
    ),
    "truth-without-points": lambda: changed_ground_truth(
        lambda truth: replace(truth, points=truth.points * 0)
    ),
    "equal-scores": lambda: changed_predictions(
        lambda predicted: replace(predicted, scores=np.ones(len(predicted)))
    ),
    "zero-scores": lambda: changed_predictions(
        lambda predicted: replace(predicted, scores=np.zeros(len(predicted)))
    ),
    "no-velocities": lambda: changed_predictions(
        lambda predicted: replace(predicted, velocities=predicted.velocities * np.nan)
    ),
    "no-attributes": lambda: changed_predictions(
        lambda predicted: replace(predicted, attributes=np.full(len(predicted), ""))
    ),
    "three-metres-off": lambda: changed_predictions(
        lambda predicted: replace(predicted, centres=predicted.centres + 3)
    ),
    "wrong-classes": lambda: changed_predictions(
        lambda predicted: replace(predicted, labels=(predicted.labels + 1) % len(CLASSES))
    ),
    "out-of-range": lambda: changed_predictions(
        lambda predicted: replace(predicted, centres=predicted.centres + 300)
    ),
    "one-box": lambda: changed_predictions(lambda predicted: predicted[predicted.scores > 0.9][:1]),
    "missing-classes": lambda: random_case(5, classes=(0, 3, 5, 8)),
}


@pytest.fixture(scope="module")
def devkit() -> Callable[..., str]:
    """Runs a program in the environment of the devkit, and returns its output."""
    python = os.environ.get("GROUPDETR_DEVKIT_PYTHON")
    if not python:
        pytest.skip("GROUPDETR_DEVKIT_PYTHON names no Python that has nuscenes-devkit 1.2.0")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(program: str, *arguments: Path) -> str:
        command = [python, "-c", program, *map(str, arguments)]
        return subprocess.run(
            command, check=True, env=environment, stdout=subprocess.PIPE, text=True
        ).stdout

    return run


@pytest.fixture(scope="module")
def devkit_folders(
    devkit: Callable[..., str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The folder of each case, with the metrics of the devkit.

    It runs once for all cases, because it starts slowly.
    """
    folders = {name: tmp_path_factory.mktemp(name) for name in CASES}
    for name, folder in folders.items():
        samples, predictions = CASES[name]()
        write_tables(folder, samples)
        write_results(folder / "results.json", samples.tokens, predictions)
    devkit(DEVKIT, *folders.values())
    return folders


def test_splits_are_those_of_the_devkit(devkit: Callable[..., str]) -> None:
    theirs = json.loads(devkit(SPLITS))
    ours = {name: sorted(scenes) for name, scenes in official_splits("v1.0-trainval").items()}
    assert ours == {
        name: sorted(theirs[name]) for name in ("train", "val", "mini_train", "mini_val")
    }


@pytest.mark.parametrize("name", CASES)
def test_every_figure_is_that_of_the_devkit(devkit_folders: dict[str, Path], name: str) -> None:
    samples, _ = CASES[name]()
    folder = devkit_folders[name]
    predictions = read_results(folder / "results.json", samples.tokens)
    ours = evaluate(samples.ground_truth, predictions)
    theirs = json.loads((folder / "metrics.json").read_text())

    pairs = [(ours.stats["NDS"], theirs["nd_score"]), (ours.stats["mAP"], theirs["mean_ap"])]
    for error, key in ERRORS.items():
        pairs.append((ours.stats[f"m{error}"], theirs["tp_errors"][key]))
    for row in ours.per_class:
        their_aps, their_errors = theirs["label_aps"][row.name], theirs["label_tp_errors"][row.name]
        for ap, threshold in zip(row.AP_by_distance, DISTANCE_THRESHOLDS):
            pairs.append((ap, their_aps[str(threshold)]))
        for error, key in ERRORS.items():
            pairs.append((getattr(row, error), their_errors[key]))

    assert [math.isnan(a) for a, _ in pairs] == [math.isnan(b) for _, b in pairs]
    difference = max(abs(a - b) for a, b in pairs if not math.isnan(b))
    print(
        f"{name}: NDS {ours.stats['NDS']:.4f} mAP {ours.stats['mAP']:.4f}, "
        f"largest difference {difference:.1e}"
    )
    assert difference < 1e-9
