"""On a GPU, the host waits once in a training step: for the matching costs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from groupdetr.data.batch import ImageBatch, collate
from groupdetr.data.nuscenes.dataset import SceneBatch
from groupdetr.detectors.recipe import Recipe
from groupdetr.engine.checkpoint import CheckpointState, TrainingProgress
from groupdetr.engine.host_communication import HostCommunication
from groupdetr.engine.optimizer import create_ema, create_optimizer
from groupdetr.engine.step_groups import StepGroups, trains_some_groups
from groupdetr.engine.training_step import TrainingStep
from groupdetr.modeling.group_chunks import with_loss
from groupdetr.settings import Settings
from groupdetr.structures.camera_images import CameraImages
from tests.pretended_device import PRETENDED, pretended_device

from .detectors import FAST, build, detector_input, detector_targets, random_images, random_target


def pinned_batch(recipe: Recipe) -> ImageBatch | SceneBatch:
    """Return two images or scenes in pinned memory, as the data loader does on a GPU."""
    targets = detector_targets(recipe, [random_target(4, 0), random_target(2, 1)])
    images = detector_input(recipe, random_images((2, 3), (3, 1)))
    if isinstance(images, CameraImages):
        pixels = torch.randint(256, images.pixels.shape, dtype=torch.uint8)
        lidar_to_image, _ = torch.linalg.inv_ex(images.image_to_lidar.double())
        return SceneBatch(pixels, lidar_to_image, images.elapsed, targets, [0, 1]).pin_memory()
    sizes = ((64, 96), (96, 32))
    pixels_of_images = [torch.randint(256, (3, *size), dtype=torch.uint8) for size in sizes]
    return collate(list(zip(pixels_of_images, targets, (0, 1)))).pin_memory()


def take_steps(recipe: Recipe, settings: Settings, steps: int) -> list[list[str]]:
    """Take steps of a training on a pretended GPU, and return the host waits of each."""
    waits = []
    with pretended_device() as device:
        model = build(recipe).train()
        device.put_on_device(model)
        step_groups = StepGroups(model, settings) if trains_some_groups(settings) else None
        rows = step_groups.rows if step_groups else None
        optimizer = create_optimizer(model, settings, rows)
        ema = create_ema(model, 0.99)
        device.put_on_device(ema.module)
        criterion = recipe.criterion()
        network = with_loss(model, criterion, settings.group_chunk)
        state = CheckpointState(model, optimizer, ema, TrainingProgress(), rows=rows)
        step = training_step(settings, state, step_groups)
        for _ in range(steps):
            device.waits.clear()
            step.run(network, [pinned_batch(recipe)])
            state.progress.step += 1
            waits.append(list(device.waits))
    return waits


def training_step(
    settings: Settings, state: CheckpointState, step_groups: StepGroups | None
) -> TrainingStep:
    accelerator: Any = SimpleNamespace(
        device=PRETENDED,
        autocast=Accelerator(cpu=True).autocast,
        reduce=lambda values, _: values,
        process_index=0,
    )
    plan: Any = SimpleNamespace(settings=settings, accelerator=accelerator, num_processes=1)
    schedule: Any = SimpleNamespace(fraction=lambda: 0.0)
    hosts = HostCommunication(1, PRETENDED)
    return TrainingStep(plan, state, schedule, step_groups, hosts)


@pytest.mark.parametrize("recipe", [pytest.param(r, id=name) for name, r in FAST.items()])
def test_a_step_waits_for_the_matching_costs_alone(recipe: Recipe) -> None:
    (waits,) = take_steps(recipe, Settings(), 1)
    assert [wait.partition(":")[0] for wait in waits] == ["event in criterion/matcher.py"]


@pytest.mark.parametrize(
    "settings", [Settings(), Settings(groups_per_step=2)], ids=["all groups", "drawn groups"]
)
def test_checking_the_step_before_waits_for_nothing(settings: Settings) -> None:
    """The groups of the fourth step are the first and the third, which are no slice."""
    waits = take_steps(FAST["dino"], settings, 4)
    assert [len(waits_of_step) for waits_of_step in waits] == [1, 1, 1, 1]
