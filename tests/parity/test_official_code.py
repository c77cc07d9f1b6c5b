"""Outputs, losses and gradients equal those of the authors' code.

Runs if environment variables name checkouts: GROUPDETR_CONDITIONAL_DETR_REPO of either branch of
github.com/Atten4Vis/ConditionalDETR; GROUPDETR_DAB_DETR_REPO, GROUPDETR_DN_DETR_REPO and
GROUPDETR_DINO_REPO of github.com/IDEA-Research/DAB-DETR, DN-DETR and DINO. To print the
differences: ``pytest -m slow -s tests/parity``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from groupdetr.checkpoints.checkpoint import Checkpoint
from groupdetr.structures.images import Images
from groupdetr.structures.outputs import Outputs
from groupdetr.structures.targets import Target
from groupdetr.weights.loading import load_weights

from . import official
from .official import FAMILIES, Family, to_their_targets

pytestmark = pytest.mark.slow
GROUPS = (1, 3, 11)
TOLERANCE = 1e-4


class Pair:
    """Their model and ours, loaded from one checkpoint file of theirs, and a batch with padding."""

    def __init__(self, family: Family, num_groups: int, dilated: bool, folder: Path) -> None:
        torch.manual_seed(num_groups)
        self.family = family
        model, criterion, args = official.build(family, num_groups, dilated)
        self.theirs = official.Theirs(family, model, criterion, args)
        path = folder / "checkpoint.pth"
        torch.save({"model": model.state_dict(), "optimizer": {}, "epoch": 49, "args": args}, path)
        options = {"dilated": True} if dilated else {}
        recipe = replace(family.recipe, num_groups=num_groups, **options)
        self.ours, self.our_criterion = recipe.build(), recipe.criterion()
        self.report = load_weights(self.ours, path)
        for module in (*self.ours.modules(), *model.modules()):
            if type(module).__name__ == "DropPath":
                module.drop_prob = 0.0  # type: ignore[assignment]
        if self.theirs.denoises:
            self.theirs.noise.original = self.ours.queries.noise
            self.ours.queries.noise = self.theirs.noise
        self.images = Images.from_list(
            [random_image(96, 128), random_image(128, 80), random_image(64, 64)]
        )
        self.targets = [random_target(3), random_target(0), random_target(7)]

    def to(self, dtype: torch.dtype) -> None:
        """Convert both models and the pixels.

        Their values are of single precision, so the way to double and back loses nothing.
        """
        self.ours.to(dtype)
        self.theirs.model.to(dtype)
        self.images.pixels = self.images.pixels.to(dtype)

    def train(self, mode: bool = True) -> None:
        for module in (self.ours, self.theirs.model, self.theirs.criterion):
            module.train(mode)

    def outputs(self, targets: list[Target]) -> tuple[Outputs, dict[str, Any], tuple[Any, ...]]:
        """Return our outputs, theirs, and further arguments of their criterion."""
        # Theirs run first, because ours use the noise that theirs drew.
        theirs, more = self.theirs(self.images, to_their_targets(targets, self.images.pixels.dtype))
        return self.ours(self.images, targets), theirs, more

    def compare(
        self, targets: list[Target]
    ) -> tuple[Outputs, dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
        """Return our outputs, their outputs, our losses and their losses."""
        ours, theirs, more = self.outputs(targets)
        their_losses = self.theirs.losses(
            theirs, to_their_targets(targets, self.images.pixels.dtype), more
        )
        return ours, theirs, self.our_criterion(ours, targets), their_losses


def random_image(height: int, width: int) -> Tensor:
    """Return an image with large structures, so that positions in it differ."""
    coarse = torch.randn(1, 3, height // 16, width // 16)
    return F.interpolate(coarse, size=(height, width), mode="bicubic")[0] * 2


def random_target(num_objects: int) -> Target:
    centre = torch.rand(num_objects, 2) * 0.6 + 0.2
    size = torch.rand(num_objects, 2) * 0.35 + 0.05
    return Target(torch.randint(1, 91, (num_objects,)), torch.cat([centre, size], dim=1))


CASES = [
    (name, k, dilated)
    for name, family in FAMILIES.items()
    for dilated in family.backbones
    for k in GROUPS
]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(map(str, case)))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    name, num_groups, dilated = request.param
    family = FAMILIES[name]
    if not family.repository:
        pytest.skip(f"{family.variable} names no checkout")
    if num_groups > 1 and not family.has_groups:
        pytest.skip("this branch has no groups")
    return Pair(family, num_groups, dilated, tmp_path_factory.mktemp("official"))


def max_difference(what: str, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """Return the largest absolute difference, over the same names on both sides, and print it."""
    assert ours.keys() == theirs.keys()
    difference = max((ours[name] - theirs[name]).abs().max().item() for name in ours)
    largest = max(value.abs().max().item() for value in theirs.values())
    print(
        f"{what}: {len(ours)} tensors, largest value {largest:.3g}, "
        f"largest difference {difference:.3g}"
    )
    return difference


def test_all_tensors_of_their_checkpoint_are_used(pair: Pair) -> None:
    assert len(pair.theirs.model.state_dict()) == pair.family.tensors
    assert len(pair.report.lines) == 1  # only that it was read: nothing was fitted


def test_outputs_and_losses_are_theirs(pair: Pair) -> None:
    pair.train()
    ours, theirs, our_losses, their_losses = pair.compare(pair.targets)
    their_layers, num_denoising = [*theirs["aux_outputs"], theirs], ours.queries.num_denoising
    predicted, expected = {}, {}
    for i, layer in enumerate(ours.layers):
        predicted[f"logits{i}"] = layer.logits[:, :, num_denoising:].flatten(1, 2)
        predicted[f"boxes{i}"] = layer.boxes[:, :, num_denoising:].flatten(1, 2)
    for i, layer in enumerate(their_layers):
        expected[f"logits{i}"] = layer["pred_logits"]
        expected[f"boxes{i}"] = layer["pred_boxes"]
    assert max_difference("outputs", predicted, expected) < TOLERANCE
    assert max_difference("losses", our_losses, their_losses) < TOLERANCE
    assert any("denoising" in name for name in our_losses) == pair.theirs.denoises


def test_gradients_are_theirs(pair: Pair) -> None:
    """In double precision.

    In single precision, a ReLU whose input is zero up to rounding may fall on either side. The
    gradients of that unit then differ by up to 1e-3.
    """
    pair.to(torch.float64)
    pair.train()
    _, _, our_losses, their_losses = pair.compare(pair.targets)
    pair.ours.zero_grad()
    pair.theirs.model.zero_grad()
    torch.stack([*our_losses.values()]).sum().backward()
    torch.stack([*their_losses.values()]).sum().backward()
    assert max_difference("gradients", our_gradients(pair), their_gradients(pair)) < TOLERANCE
    pair.to(torch.float32)


def our_gradients(pair: Pair) -> dict[str, Tensor]:
    return {name: p.grad for name, p in pair.ours.named_parameters() if p.grad is not None}


def their_gradients(pair: Pair) -> dict[str, Tensor]:
    """Return their gradients under our names, without those of frozen parameters."""
    parameters = pair.theirs.model.named_parameters(remove_duplicate=False)
    gradients = {name: p.grad for name, p in parameters if p.grad is not None}
    renamed = pair.family.layout.convert(Checkpoint(gradients, {}, "gradients")).state
    table = pair.family.table
    return renamed | {table: renamed[table].view(pair.ours.get_parameter(table).shape)}


def test_inference_is_theirs(pair: Pair) -> None:
    pair.train(False)
    with torch.no_grad():
        ours, theirs, _ = pair.outputs(pair.targets)
    predicted = {"logits": ours.final.logits, "boxes": ours.final.boxes}
    expected = {"logits": theirs["pred_logits"], "boxes": theirs["pred_boxes"]}
    assert max_difference("inference", predicted, expected) < TOLERANCE


def test_losses_without_objects_differ_from_theirs_by_the_factor_of_groups(pair: Pair) -> None:
    """Their normaliser is max(1, K * objects), ours K * max(1, objects).

    Ours is the mean over groups (Eq. 7).
    """
    pair.train()
    _, _, ours, theirs = pair.compare([random_target(0)] * 3)
    assert ours.keys() == theirs.keys()
    num_groups = pair.ours.recipe.num_groups
    difference = max(abs(theirs[name] / num_groups - ours[name]).item() for name in ours)
    print(f"without objects, theirs / {num_groups}: largest difference {difference:.3g}")
    assert difference < TOLERANCE
    for name, loss in theirs.items():
        if name.endswith("focal") and "denoising" not in name:
            assert loss > 0
