"""PETR and PETRv2 as published: 900 queries a group, VoVNetV2-99, six views of 320 x 800 pixels, or twelve."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from groupdetr.criterion.criterion import SetCriterion
from groupdetr.detectors.petr import PETR, PETRv2
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.structures.camera_images import CameraImages
from groupdetr.structures.memory import Memory
from groupdetr.structures.outputs import Outputs
from groupdetr.structures.targets import Target
from tests.parity import petr

from .detectors import alone

pytestmark = pytest.mark.slow

SIZE = (320, 800)
DETECTORS = [pytest.param(PETR, 1, id="petr-v99"), pytest.param(PETRv2, 2, id="petrv2-v99")]
Masks = list[tuple[int, Tensor | None]]


def scene(moments: int) -> CameraImages:
    """One, of noise, through the cameras of a car, whose pictures are five times as large as the published code's."""
    larger = torch.diag(torch.tensor([5.0, 5.0, 1.0, 1.0])).double()
    pixels = torch.randn(1, 6 * moments, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    return CameraImages.seen_through(
        pixels, larger @ petr.cameras(moments)[:1], torch.tensor([0.5])
    )


def losses(model: DetectionTransformer, memory: Memory, targets: list[Target]) -> dict[str, Tensor]:
    queries = model.queries(memory, targets)
    criterion: SetCriterion = model.recipe.criterion()
    return criterion(Outputs(model.decoder(queries, memory), queries), targets)


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> Masks:
    """Of every attention to come: how many keys, and which of them are hidden."""
    seen: Masks = []
    plain = F.scaled_dot_product_attention

    def attention(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options: Any
    ) -> Tensor:
        seen.append((key.shape[-2], attn_mask))
        return plain(query, key, value, attn_mask=attn_mask, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    return seen


@pytest.mark.parametrize(("kind", "moments"), DETECTORS)
@torch.no_grad()
def test_groups_are_single_detectors_and_nothing_is_hidden_from_them(
    kind: type[PETR], moments: int, looked: Masks
) -> None:
    torch.manual_seed(0)
    model = kind(num_groups=3, dropout=0.0, grid_mask=0.0).build().train()
    images, targets = scene(moments), petr.targets()[:1]
    memory = model.encoder(model.backbone(images.pixels), *images.beside)
    assert memory.tokens.shape == (1, 6000 * moments, 256)
    together = losses(model, memory, targets)
    assert [mask for _, mask in looked] == [None] * 12
    assert [keys for keys, _ in looked] == [900, 6000 * moments] * 6
    each = [losses(alone(model, k).train(), memory, targets) for k in range(3)]
    assert len({round(single["layer5/l1"].item(), 3) for single in each}) == 3
    for name, loss in together.items():
        assert loss.item() == pytest.approx(
            sum(single[name].item() for single in each) / 3, rel=1e-5
        ), name
