"""Detection in space: what six cameras saw in, scored boxes around the vehicle out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from groupdetr.data.nuscenes.dataset import Views
from groupdetr.data.nuscenes.samples import Sample
from groupdetr.data.nuscenes.transforms import IMGSZ
from groupdetr.evaluation.boxes3d import Boxes3D, Pose, found_boxes
from groupdetr.evaluation.nuscenes import Evaluation, Scene, evaluate
from groupdetr.ops.boxes3d import code_to_box
from groupdetr.structures import Predictions
from groupdetr.tasks.detection import best_pairs

LOW, HIGH = (-61.2, -61.2, -10.0), (61.2, 61.2, 10.0)  # metres: centres beyond are dropped


@dataclass
class Found:
    """Of one sample, by falling score, in the lidar frame."""

    scores: Tensor  # [D] in [0,1]
    labels: Tensor  # [D] int64
    boxes: Tensor  # [D,9] as in ops/boxes3d


@torch.no_grad()
def boxes_in_space(answer: Predictions, most: int) -> list[Found]:
    """The ``most`` best (query, class) pairs of each scene. As in PETR: no threshold, no non-maximum suppression."""
    scores, query, label = best_pairs(answer.logits.float().sigmoid(), most)
    codes = answer.boxes.float().gather(1, query.unsqueeze(-1).expand(-1, -1, answer.boxes.shape[-1]))
    boxes = code_to_box(codes)
    low, high = boxes.new_tensor(LOW), boxes.new_tensor(HIGH)
    within = ((boxes[..., :3] >= low) & (boxes[..., :3] <= high)).all(-1)
    parts = (scores.cpu(), label.cpu(), boxes.cpu(), within.cpu())
    return [Found(score[kept], kind[kept], box[kept]) for score, kind, box, kept in zip(*parts)]


class Detection3DTask:
    """Detection on the samples of ``train`` and ``val`` splits.

    ``size``: height and width that pictures become. ``most``: boxes kept of a sample.
    """

    def __init__(
        self, samples: Mapping[str, Sequence[Sample]], most: int, size: tuple[int, int] = IMGSZ,
        two_frames: bool = False, seed: int = 0,
    ) -> None:  # fmt: skip
        self.most = most
        self.train = Views(samples["train"], size, augmented=True, two_frames=two_frames, seed=seed)
        self.val = Views(samples["val"], size, two_frames=two_frames)

    def postprocess(self, answer: Predictions, indices: Sequence[int]) -> list[Found]:
        del indices
        return boxes_in_space(answer, self.most)

    def evaluate(self, found: Sequence[Found]) -> Evaluation:
        scenes = [scene_of(sample) for sample in self.val.samples]
        return evaluate(scenes, [in_the_world(each, sample) for each, sample in zip(found, self.val.samples)])

    def names(self, indices: Sequence[int]) -> list[str]:
        return [f"sample {self.train.samples[index].token}" for index in indices]


def scene_of(sample: Sample) -> Scene:
    """What is there."""
    truth = sample.truth
    return Scene.seen_from(pose_of(sample), truth.boxes, truth.labels, truth.attributes, truth.points, truth.racks)


def in_the_world(found: Found, sample: Sample) -> Boxes3D:
    return found_boxes(found.boxes.numpy(), found.labels.numpy(), found.scores.numpy(), pose_of(sample))


def pose_of(sample: Sample) -> Pose:
    return Pose(sample.lidar_to_ego, sample.ego_to_global)
