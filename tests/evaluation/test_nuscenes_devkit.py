"""Our nuScenes detection score is that of nuscenes-devkit 1.2.0, to the last class and threshold; so are our splits.

The devkit wants numpy 1: it runs in an environment of its own, whose Python GROUPDETR_DEVKIT_PYTHON names.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from groupdetr.data.nuscenes.names import ATTRIBUTES
from groupdetr.data.nuscenes.splits import official
from groupdetr.evaluation.boxes3d import CLASSES, Boxes3D
from groupdetr.evaluation.nuscenes import DISTANCES, evaluate
from groupdetr.evaluation.nuscenes_results import read_results, write_results
from tests.evaluation.worlds import SECONDS, World, guesses, random_world

pytestmark = [pytest.mark.slow, pytest.mark.fair_sample]

DEVKIT = """
import json, sys
from nuscenes import NuScenes
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.detection.evaluate import DetectionEval

for root in sys.argv[1:]:
    data = NuScenes(version="v1.0-random", dataroot=root, verbose=False)
    config = config_factory("detection_cvpr_2019")
    run = DetectionEval(data, config, root + "/results.json", "random", root + "/out", verbose=False)
    with open(root + "/figures.json", "w") as file:
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


def write_tables(root: Path, world: World) -> None:
    """The tables of a data set that holds no more than the truth of ``world``."""
    folder = root / "v1.0-random"
    folder.mkdir(parents=True)
    names = [{"token": name, "name": name} for name in CATEGORIES.values()]
    annotations = [row for i in range(len(world.scenes)) for row in annotations_of(world, i)]
    moments = [
        {
            "token": token,
            "timestamp": round(i * SECONDS * 1e6),
            "scene_token": "scene",
            "prev": "",
            "next": "",
        }
        for i, token in enumerate(world.tokens)
    ]
    tables = {
        "category": names,
        "attribute": [{"token": name, "name": name} for name in ATTRIBUTES],
        "visibility": [],
        "instance": [
            {"token": token, "category_token": category}
            for token, category in {
                row["instance_token"]: row.pop("category") for row in annotations
            }.items()
        ],
        "sensor": [{"token": "lidar", "channel": "LIDAR_TOP", "modality": "lidar"}],
        "calibrated_sensor": [{"token": "lidar", "sensor_token": "lidar"}],
        "ego_pose": [
            {"token": token, "translation": scene.ego.tolist()}
            for token, scene in zip(world.tokens, world.scenes)
        ],
        "log": [{"token": "log"}],
        "scene": [{"token": "scene", "name": "scene-1"}],
        "sample": moments,
        "sample_data": [
            {
                "token": token,
                "sample_token": token,
                "ego_pose_token": token,
                "calibrated_sensor_token": "lidar",
                "is_key_frame": True,
            }
            for token in world.tokens
        ],
        "sample_annotation": annotations,
        "map": [{"token": "map", "log_tokens": ["log"], "filename": "map.png"}],
    }
    for name, rows in tables.items():
        (folder / f"{name}.json").write_text(json.dumps(rows))
    (folder / "splits.json").write_text(json.dumps({"random": ["scene-1"]}))
    Image.new("L", (4, 4)).save(root / "map.png")


def annotations_of(world: World, i: int) -> list[dict]:
    """True boxes and racks of sample ``i``; boxes are linked to those of the same object before and after."""
    scene = world.scenes[i]
    neighbours = {
        "prev": set(world.instances[i - 1]) if i else set(),
        "next": set(world.instances[i + 1]) if i + 1 < len(world.scenes) else set(),
    }
    rows = []
    for k, instance in enumerate(world.instances[i]):
        links = {
            key: f"object{instance}@{i + step}" if instance in others else ""
            for (key, others), step in zip(neighbours.items(), (-1, 1))
        }
        attribute = scene.truth.attributes[k]
        row = annotation(
            f"object{instance}",
            world.tokens[i],
            scene.truth,
            k,
            CLASSES[scene.truth.labels[k]].name,
        )
        row |= {
            "token": f"object{instance}@{i}",
            "attribute_tokens": [str(attribute)] if attribute else [],
        } | links
        rows.append(row | {"num_lidar_pts": int(scene.truth.points[k])})
    return rows + [
        annotation(f"rack{i}-{k}", world.tokens[i], scene.racks, k, "rack")
        for k in range(len(scene.racks))
    ]


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


Case = tuple[World, list[Boxes3D]]


def changed(change: Callable[[Boxes3D], Boxes3D], seed: int = 3) -> Case:
    world = random_world(seed)
    return world, [change(boxes) for boxes in guesses(seed, world)]


def of_truth(change: Callable[[Boxes3D], Boxes3D], seed: int = 4) -> Case:
    """The truth handed in as the answer to a world that ``change`` went over."""
    world = random_world(seed)
    scenes = [replace(scene, truth=change(scene.truth)) for scene in world.scenes]
    found = [replace(s.truth, scores=np.ones(len(s.truth)), points=None) for s in world.scenes]
    return replace(world, scenes=scenes), found


def random_case(seed: int) -> Case:
    world = random_world(seed)
    return world, guesses(seed, world, noise=(0.2, 0.6, 2.0)[seed % 3])


CASES: dict[str, Callable[[], Case]] = {
    **{f"random-{seed}": lambda seed=seed: random_case(seed) for seed in range(6)},
    "truth": lambda: of_truth(lambda truth: truth),
    "truth-without-attributes": lambda: of_truth(
        lambda truth: replace(truth, attributes=np.full(len(truth), ""))
    ),
    "truth-without-points": lambda: of_truth(lambda truth: replace(truth, points=truth.points * 0)),
    "scores-tie": lambda: changed(lambda found: replace(found, scores=np.ones(len(found)))),
    "scores-zero": lambda: changed(lambda found: replace(found, scores=np.zeros(len(found)))),
    "no-velocities": lambda: changed(
        lambda found: replace(found, velocities=found.velocities * np.nan)
    ),
    "no-attributes": lambda: changed(
        lambda found: replace(found, attributes=np.full(len(found), ""))
    ),
    "beside": lambda: changed(lambda found: replace(found, centres=found.centres + 3)),
    "mistaken": lambda: changed(
        lambda found: replace(found, labels=(found.labels + 1) % len(CLASSES))
    ),
    "out-of-reach": lambda: changed(lambda found: replace(found, centres=found.centres + 300)),
    "one-box": lambda: changed(lambda found: found[found.scores > 0.9][:1]),
    "classes-missing": lambda: (lambda world: (world, guesses(5, world)))(
        random_world(5, classes=(0, 3, 5, 8))
    ),
}


@pytest.fixture(scope="module")
def devkit() -> Callable[..., str]:
    """Runs a program where the devkit is installed, and hands over what it prints."""
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
def theirs(devkit: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of each case, with the devkit's figures; it is slow to start, and so starts once."""
    folders = {name: tmp_path_factory.mktemp(name) for name in CASES}
    for name, folder in folders.items():
        world, found = CASES[name]()
        write_tables(folder, world)
        write_results(folder / "results.json", world.tokens, found)
    devkit(DEVKIT, *folders.values())
    return folders


def test_splits_are_the_devkits(devkit: Callable[..., str]) -> None:
    theirs = json.loads(devkit(SPLITS))
    ours = {name: sorted(scenes) for name, scenes in official("v1.0-trainval").items()}
    assert ours == {
        name: sorted(theirs[name]) for name in ("train", "val", "mini_train", "mini_val")
    }


@pytest.mark.parametrize("name", CASES)
def test_every_figure_is_the_devkits(theirs: dict[str, Path], name: str) -> None:
    world, _ = CASES[name]()
    ours = evaluate(world.scenes, read_results(theirs[name] / "results.json", world.tokens))
    figures = json.loads((theirs[name] / "figures.json").read_text())
    pairs = [(ours.stats["NDS"], figures["nd_score"]), (ours.stats["mAP"], figures["mean_ap"])]
    pairs += [(ours.stats[f"m{error}"], figures["tp_errors"][key]) for error, key in ERRORS.items()]
    for row in ours.per_class:
        aps, errors = figures["label_aps"][row.name], figures["label_tp_errors"][row.name]
        pairs += [(ap, aps[str(distance)]) for ap, distance in zip(row.AP_by_distance, DISTANCES)]
        pairs += [(getattr(row, error), errors[key]) for error, key in ERRORS.items()]
    worst = max(abs(a - b) for a, b in pairs if not math.isnan(b))
    assert [math.isnan(a) for a, _ in pairs] == [math.isnan(b) for _, b in pairs]
    print(
        f"{name}: NDS {ours.stats['NDS']:.4f} mAP {ours.stats['mAP']:.4f}, largest difference {worst:.1e}"
    )
    assert worst < 1e-9
