"""Outputs, losses and gradients equal those of the authors' code.

Runs where environment variables name checkouts: GROUPDETR_CONDITIONAL_DETR_REPO of either branch of
github.com/Atten4Vis/ConditionalDETR; GROUPDETR_DAB_DETR_REPO, GROUPDETR_DN_DETR_REPO and GROUPDETR_DINO_REPO of
github.com/IDEA-Research/DAB-DETR, DN-DETR and DINO. Figures: ``pytest -m slow -s tests/parity``.
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

from groupdetr.checkpoints.reading import Checkpoint
from groupdetr.structures.images import Images
from groupdetr.structures.outputs import Outputs
from groupdetr.structures.targets import Target
from groupdetr.weights.loading import load_weights

from . import official
from .official import FAMILIES, Family, described

pytestmark = pytest.mark.slow
GROUPS = (1, 3, 11)
TOLERANCE = 1e-4


class Pair:
    """Their model and ours, from one checkpoint file of theirs, on one batch with padding."""

    def __init__(self, family: Family, num_groups: int, dilated: bool, folder: Path) -> None:
        torch.manual_seed(num_groups)
        self.family = family
        model, criterion, args = official.build(family, num_groups, dilated)
        self.theirs = official.Theirs(family, model, criterion, args)
        path = folder / "checkpoint.pth"
        torch.save({"model": model.state_dict(), "optimizer": {}, "epoch": 49, "args": args}, path)
        recipe = replace(
            family.recipe, num_groups=num_groups, **({"dilated": True} if dilated else {})
        )
        self.ours, self.our_criterion = recipe.build(), recipe.criterion()
        self.report = load_weights(self.ours, path)
        for module in (*self.ours.modules(), *model.modules()):
            if type(module).__name__ == "DropPath":
                module.drop_prob = 0.0  # type: ignore[assignment]
        if self.theirs.denoises:
            self.theirs.noise.of = self.ours.queries.noise
            self.ours.queries.noise = self.theirs.noise
        self.images = Images.from_list([scene(96, 128), scene(128, 80), scene(64, 64)])
        self.targets = [objects(3), objects(0), objects(7)]

    def to(self, dtype: torch.dtype) -> None:
        """Weights and pixels are numbers of single precision, so the way to double and back loses nothing."""
        self.ours.to(dtype), self.theirs.model.to(dtype)
        self.images.pixels = self.images.pixels.to(dtype)

    def train(self, mode: bool = True) -> None:
        self.ours.train(mode), self.theirs.model.train(mode), self.theirs.criterion.train(mode)

    def outputs(self, targets: list[Target]) -> tuple[Outputs, dict[str, Any], tuple[Any, ...]]:
        """Ours, theirs, and what their criterion wants besides. Theirs first: ours takes their noise."""
        theirs, more = self.theirs(self.images, described(targets, self.images.pixels.dtype))
        return self.ours(self.images, targets), theirs, more

    def compare(
        self, targets: list[Target]
    ) -> tuple[Outputs, dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
        """Outputs and losses of both: ours, theirs."""
        ours, theirs, more = self.outputs(targets)
        their_losses = self.theirs.losses(
            theirs, described(targets, self.images.pixels.dtype), more
        )
        return ours, theirs, self.our_criterion(ours, targets), their_losses


def scene(height: int, width: int) -> Tensor:
    """A picture with large structures, so that places differ."""
    return (
        F.interpolate(
            torch.randn(1, 3, height // 16, width // 16), size=(height, width), mode="bicubic"
        )[0]
        * 2
    )


def objects(count: int) -> Target:
    centre, size = torch.rand(count, 2) * 0.6 + 0.2, torch.rand(count, 2) * 0.35 + 0.05
    return Target(torch.randint(1, 91, (count,)), torch.cat([centre, size], dim=1))


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


def differences(what: str, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """The largest absolute difference, over the same names on both sides."""
    assert ours.keys() == theirs.keys()
    worst = max((ours[name] - theirs[name]).abs().max().item() for name in ours)
    largest = max(value.abs().max().item() for value in theirs.values())
    print(
        f"{what}: {len(ours)} tensors, largest value {largest:.3g}, largest difference {worst:.3g}"
    )
    return worst


def test_all_tensors_of_their_checkpoint_are_used(pair: Pair) -> None:
    assert len(pair.theirs.model.state_dict()) == pair.family.tensors
    assert len(pair.report.lines) == 1  # read, and nothing had to be fitted


def test_outputs_and_losses_are_theirs(pair: Pair) -> None:
    pair.train()
    ours, theirs, our_losses, their_losses = pair.compare(pair.targets)
    layers, start = [*theirs["aux_outputs"], theirs], ours.queries.num_denoising
    told = {f"logits{i}": x.logits[:, :, start:].flatten(1, 2) for i, x in enumerate(ours.layers)}
    told |= {f"boxes{i}": x.boxes[:, :, start:].flatten(1, 2) for i, x in enumerate(ours.layers)}
    meant = {f"logits{i}": x["pred_logits"] for i, x in enumerate(layers)}
    meant |= {f"boxes{i}": x["pred_boxes"] for i, x in enumerate(layers)}
    assert differences("outputs", told, meant) < TOLERANCE
    assert differences("losses", our_losses, their_losses) < TOLERANCE
    assert any("denoising" in name for name in our_losses) == pair.theirs.denoises


def test_gradients_are_theirs(pair: Pair) -> None:
    """In double precision: in single, a ReLU whose input is zero up to rounding may fall on either side, and the
    gradients of that one unit then differ by up to 1e-3 here."""
    pair.to(torch.float64)
    pair.train()
    _, _, our_losses, their_losses = pair.compare(pair.targets)
    pair.ours.zero_grad(), pair.theirs.model.zero_grad()
    torch.stack([*our_losses.values()]).sum().backward()
    torch.stack([*their_losses.values()]).sum().backward()
    assert differences("gradients", our_gradients(pair), their_gradients(pair)) < TOLERANCE
    pair.to(torch.float32)


def our_gradients(pair: Pair) -> dict[str, Tensor]:
    return {name: p.grad for name, p in pair.ours.named_parameters() if p.grad is not None}


def their_gradients(pair: Pair) -> dict[str, Tensor]:
    """Under our names, frozen parameters absent."""
    parameters = pair.theirs.model.named_parameters(remove_duplicate=False)
    found = {name: p.grad for name, p in parameters if p.grad is not None}
    renamed = pair.family.layout.convert(Checkpoint(found, {}, "gradients")).state
    table = pair.family.table
    return renamed | {table: renamed[table].view(pair.ours.get_parameter(table).shape)}


def test_inference_is_theirs(pair: Pair) -> None:
    pair.train(False)
    with torch.no_grad():
        ours, theirs, _ = pair.outputs(pair.targets)
    told = {"logits": ours.answer.logits, "boxes": ours.answer.boxes}
    meant = {"logits": theirs["pred_logits"], "boxes": theirs["pred_boxes"]}
    assert differences("inference", told, meant) < TOLERANCE


def test_a_batch_without_objects_differs_from_theirs_by_exactly_the_number_of_groups(
    pair: Pair,
) -> None:
    """Their normaliser is max(1, K * objects), ours K * max(1, objects), which is the mean over groups (Eq. 7)."""
    pair.train()
    _, _, ours, theirs = pair.compare([objects(0)] * 3)
    assert ours.keys() == theirs.keys()
    num_groups = pair.ours.recipe.num_groups
    worst = max(abs(theirs[name] / num_groups - ours[name]).item() for name in ours)
    print(f"without objects, theirs / {num_groups}: largest difference {worst:.3g}")
    assert worst < TOLERANCE
    assert all(
        theirs[name] > 0 for name in theirs if name.endswith("focal") and "denoising" not in name
    )
