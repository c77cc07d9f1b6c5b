"""Modules of torchvision.transforms.v2 on images, boxes and masks."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.transforms import v2

from groupdetr.data.dataset import DetectionDataset, SampleIndex
from groupdetr.data.mosaic import Mosaic
from groupdetr.data.own_transform import OwnTransform, describe_transform
from groupdetr.data.transforms import val_transform
from groupdetr.errors import UsageError
from tests.data.test_mosaic import records


class Function(nn.Module):
    """A module that calls a function of the sample."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, sample: Any) -> Any:
        return self.function(sample)


def dataset(folder: Path, module: nn.Module, masks: bool = True, **options: Any) -> Any:
    transform = OwnTransform(module)
    size = val_transform(60)
    return DetectionDataset(records(folder, masks), size, own_transform=transform, **options)


def object_pixels(image: torch.Tensor) -> np.ndarray[Any, Any]:
    return (image > 200).all(0).numpy()


@pytest.mark.parametrize(
    "module",
    [
        v2.RandomHorizontalFlip(1),
        v2.RandomVerticalFlip(1),
        v2.RandomRotation((90, 90), expand=True),
        v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.ColorJitter(0.1)]),
        v2.RandomZoomOut(p=1, side_range=(1.5, 2)),
        v2.Identity(),
    ],
    ids=lambda module: type(module).__name__,
)
def test_boxes_and_masks_follow_the_image(module: nn.Module, tmp_path: Path) -> None:
    images = dataset(tmp_path, module)
    for index in range(3):
        image, target, _ = images[index]
        assert image.dtype == torch.uint8
        assert min(image.shape[1:]) == 60
        inside = object_pixels(image)
        rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        side = np.array([image.shape[2], image.shape[1]] * 2)
        cx, cy, width, height = target.boxes[0].numpy() * side
        box = [cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2]
        measured = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        np.testing.assert_allclose(box, measured, atol=2.5)
        np.testing.assert_allclose(target.masks.windows[0][2:], box_size(measured), atol=3)


def box_size(corners: list[int]) -> list[int]:
    return [corners[2] - corners[0], corners[3] - corners[1]]


def test_a_detector_of_boxes_needs_no_masks(tmp_path: Path) -> None:
    _, target, _ = dataset(tmp_path, v2.RandomHorizontalFlip(1), masks=False)[0]
    assert target.masks is None
    assert len(target.boxes) == 1


def test_the_result_depends_on_the_sample_alone(tmp_path: Path) -> None:
    """Generators of torch, NumPy and Python are seeded for it, and restored afterwards."""

    def noise(sample: Any) -> Any:
        number = float(torch.rand(1)) + np.random.rand() + random.random()
        image = sample["image"] * 0 + int(80 * number)
        return sample | {"image": image.to(torch.uint8)}

    images = dataset(tmp_path, Function(noise))
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # type: ignore[index]
    brightness = [int(images[SampleIndex(epoch, 1)][0][0, 0, 0]) for epoch in range(10)]
    assert len(set(brightness)) > 5
    assert torch.equal(torch.get_rng_state(), states[0])
    np.testing.assert_array_equal(np.random.get_state()[1], states[1])  # type: ignore[index]
    assert random.getstate() == states[2]
    torch.manual_seed(5)
    np.random.seed(5)
    again = [int(images[SampleIndex(epoch, 1)][0][0, 0, 0]) for epoch in reversed(range(10))]
    assert again[::-1] == brightness


def test_it_does_not_seed_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    assert dataset(tmp_path, v2.RandomHorizontalFlip())[0]
    assert not seeded


def test_objects_that_the_module_leaves_out_are_gone_and_the_others_keep_their_class(
    tmp_path: Path,
) -> None:
    record = records(tmp_path)[0]
    two = np.array([[0.0, 0, 1, 1], *record.boxes.tolist()])
    segmentation = record.segmentations
    assert segmentation is not None
    record = replace(
        record,
        boxes=two,
        labels=np.array([5, 7]),
        areas=np.ones(2),
        crowd=np.zeros(2, dtype=bool),
        annotation_ids=(1, 2),
        segmentations=(segmentation[0], segmentation[0]),
    )
    sanitize = OwnTransform(v2.SanitizeBoundingBoxes(min_size=5))
    _, target, _ = DetectionDataset([record], val_transform(60), own_transform=sanitize)[0]
    assert target.labels.tolist() == [7]
    assert target.masks is not None
    assert len(target.masks) == 1


def test_boxes_that_leave_the_image_are_clipped_or_dropped(tmp_path: Path) -> None:
    def shift(sample: Any) -> Any:
        return sample | {"boxes": sample["boxes"] + 1000}

    _, target, _ = dataset(tmp_path, Function(shift), masks=False)[0]
    assert len(target) == 0


def test_the_cached_image_is_never_changed(tmp_path: Path) -> None:
    def blacken(sample: Any) -> Any:
        sample["image"].zero_()
        return sample

    images = dataset(tmp_path, Function(blacken), cache_bytes=1 << 20)
    assert int(images[0][0].max()) == 0
    assert int(images.decode(0).max()) == 255


def test_in_a_mosaic_every_image_is_transformed_first(tmp_path: Path) -> None:
    images = dataset(tmp_path, v2.RandomRotation((90, 90), expand=True), mosaic=Mosaic(60))
    for epoch in range(20):
        image, target, _ = images[SampleIndex(epoch, 0)]
        assert target.masks is not None
        of_objects = np.zeros(tuple(image.shape[1:]), dtype=bool)
        for (left, top, width, height), start in zip(
            target.masks.windows.tolist(), target.masks.starts.tolist()
        ):
            mask = target.masks.pixels[start : start + width * height].reshape(height, width)
            of_objects[top : top + height, left : left + width] |= mask.bool().numpy()
        assert (of_objects & ~(image > 110).all(0).numpy()).mean() < 0.02


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (lambda sample: sample["image"], "without these keys"),
        (lambda sample: sample | {"image": sample["image"][:1]}, "not a tensor"),
        (lambda sample: sample | {"image": sample["image"].float()}, "leave out Normalize"),
        (lambda sample: sample | {"labels": sample["labels"][:0]}, "other numbers of boxes"),
        (lambda sample: sample | {"labels": sample["labels"] + 99}, "not some of those"),
        (lambda sample: sample | {"masks": sample["masks"][..., :3]}, "another size"),
        (lambda sample: {k: v for k, v in sample.items() if k != "masks"}, "no masks"),
        (lambda _: 1 / 0, "the transform failed: ZeroDivisionError"),
    ],
)
def test_what_a_module_must_not_return_is_named(
    function: Callable[[Any], Any], what: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=what) as refused:
        dataset(tmp_path, Function(function))[0]
    assert "Function" in refused.value.where


def test_a_function_is_no_module() -> None:
    with pytest.raises(UsageError, match="transform is a function, not a module"):
        OwnTransform(lambda sample: sample)  # type: ignore[arg-type]


def test_the_recorded_text_has_no_addresses() -> None:
    module = v2.Compose([v2.Lambda(describe_transform), v2.RandomRotation(10)])
    text = describe_transform(module)
    assert "degrees=[-10.0, 10.0]" in text
    assert " at 0x" not in text
