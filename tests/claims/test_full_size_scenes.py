"""PETR and PETRv2 at their published size.

900 queries a group, VoVNetV2-99, and six or twelve views of 320 x 800 pixels.
"""

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

from .detectors import single_group_detector

pytestmark = pytest.mark.slow

SIZE = (320, 800)
DETECTORS = [pytest.param(PETR, 1, id="petr-v99"), pytest.param(PETRv2, 2, id="petrv2-v99")]
# The number of keys and the attention mask of every call of the attention.
AttentionCalls = list[tuple[int, Tensor | None]]


def scene(frames: int) -> CameraImages:
    """Return a scene of noise, with images five times as large as those of `tests.parity.petr`."""
    larger = torch.diag(torch.tensor([5.0, 5.0, 1.0, 1.0])).double()
    pixels = torch.randn(1, 6 * frames, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    return CameraImages.from_projections(
        pixels, larger @ petr.cameras(frames)[:1], torch.tensor([0.5])
    )


def losses(model: DetectionTransformer, memory: Memory, targets: list[Target]) -> dict[str, Tensor]:
    queries = model.queries(memory, targets)
    criterion: SetCriterion = model.recipe.criterion()
    return criterion(Outputs(model.decoder(queries, memory), queries), targets)


@pytest.fixture
def attention_calls(monkeypatch: pytest.MonkeyPatch) -> AttentionCalls:
    """Record every call of the attention."""
    calls: AttentionCalls = []
    original = F.scaled_dot_product_attention

    def attention(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options: Any
    ) -> Tensor:
        calls.append((key.shape[-2], attn_mask))
        return original(query, key, value, attn_mask=attn_mask, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    return calls


@pytest.mark.parametrize(("recipe_class", "frames"), DETECTORS)
@torch.no_grad()
def test_groups_are_single_detectors_and_attend_without_a_mask(
    recipe_class: type[PETR], frames: int, attention_calls: AttentionCalls
) -> None:
    torch.manual_seed(0)
    model = recipe_class(num_groups=3, dropout=0.0, grid_mask=0.0).build().train()
    images, targets = scene(frames), petr.targets()[:1]
    memory = model.encoder(model.backbone(images.pixels), images)
    assert memory.tokens.shape == (1, 6000 * frames, 256)
    group_losses = losses(model, memory, targets)
    assert [mask for _, mask in attention_calls] == [None] * 12
    assert [keys for keys, _ in attention_calls] == [900, 6000 * frames] * 6
    single_losses = []
    for k in range(3):
        single = single_group_detector(model, k).train()
        single_losses.append(losses(single, memory, targets))
    different_losses = {round(single["layer5/l1"].item(), 3) for single in single_losses}
    assert len(different_losses) == 3
    for name, loss in group_losses.items():
        mean = sum(single[name].item() for single in single_losses) / 3
        assert loss.item() == pytest.approx(mean, rel=1e-5), name
