"""What things are called in nuScenes: cameras, classes, categories, attributes, and the scenes of the mini version."""

from __future__ import annotations

CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_FRONT_LEFT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT")
LIDAR = "LIDAR_TOP"

CLASSES = (
    "car", "truck", "construction_vehicle", "bus", "trailer", "barrier", "motorcycle", "bicycle", "pedestrian",
    "traffic_cone",
)  # fmt: skip

CATEGORIES = {  # category: class; all others are not detected
    "movable_object.barrier": "barrier",
    "vehicle.bicycle": "bicycle",
    "vehicle.bus.bendy": "bus",
    "vehicle.bus.rigid": "bus",
    "vehicle.car": "car",
    "vehicle.construction": "construction_vehicle",
    "vehicle.motorcycle": "motorcycle",
    "human.pedestrian.adult": "pedestrian",
    "human.pedestrian.child": "pedestrian",
    "human.pedestrian.construction_worker": "pedestrian",
    "human.pedestrian.police_officer": "pedestrian",
    "movable_object.trafficcone": "traffic_cone",
    "vehicle.trailer": "trailer",
    "vehicle.truck": "truck",
}
BICYCLE_RACK = "static_object.bicycle_rack"  # cycles in one are not evaluated

ATTRIBUTES = (
    "vehicle.moving", "vehicle.parked", "vehicle.stopped", "cycle.with_rider", "cycle.without_rider",
    "pedestrian.moving", "pedestrian.standing", "pedestrian.sitting_lying_down",
)  # fmt: skip

_MINI_TRAIN = ("0061", "0553", "0655", "0757", "0796", "1077", "1094", "1100")
MINI = {
    "mini_train": tuple(f"scene-{number}" for number in _MINI_TRAIN),
    "mini_val": ("scene-0103", "scene-0916"),
}
