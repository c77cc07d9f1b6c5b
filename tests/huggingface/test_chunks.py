"""Training in chunks of groups: the same losses and gradients, with less memory."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import groupdetr.huggingface as ghf
from groupdetr.errors import UsageError
from groupdetr.huggingface.families import family_of, family_with_own_groups
from groupdetr.huggingface.grouping import Grouping
from groupdetr.huggingface.loss import GroupedLoss
from tests.huggingface.detectors import DETECTORS, batch

# Masks are computed outside the decoder, and transformers computes groups of its own in one pass.
WITHOUT_CHUNKS = [
    "LW-DETR",
    "RF-DETR",
    "RF-DETR, instance segmentation",
    "DETR, segmentation",
    "Conditional DETR, segmentation",
    "Mask2Former",
    "MaskFormer",
]
# Decoders that are called and return in the same way as that of another family
ALIKE = ["Table Transformer", "Deformable DETR", "RT-DETR", "DEIMv2"]
IN_CHUNKS = [
    pytest.param(name, marks=pytest.mark.slow if name in ALIKE else [])
    for name in DETECTORS
    if name not in WITHOUT_CHUNKS
]


def detectors(name: str, group_chunk: int, num_groups: int = 3) -> tuple[Any, Any]:
    """The same detector with all groups at once, and in chunks."""
    torch.manual_seed(0)
    plain = DETECTORS[name]()
    at_once = ghf.with_groups(copy.deepcopy(plain), num_groups)
    return at_once.train(), ghf.with_groups(plain, num_groups, group_chunk=group_chunk).train()


@pytest.mark.parametrize("name", IN_CHUNKS)
def test_chunks_of_groups_have_the_losses_and_gradients_of_all_at_once(name: str) -> None:
    """With chunks of two groups of three, so that the last chunk is smaller."""
    results = []
    for model in detectors(name, group_chunk=2):
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
        torch.manual_seed(1)  # of denoising
        output = model(**batch(model))
        (2 * output.loss).backward()  # as with a scale of the loss
        gradients = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
        results.append((output, gradients))
    (at_once, expected), (in_chunks, gradients) = results
    assert torch.equal(at_once.logits, in_chunks.logits)
    assert_close(at_once.loss, in_chunks.loss)
    assert_close(at_once.auxiliary_outputs, in_chunks.auxiliary_outputs)
    assert gradients.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for parameter, gradient in gradients.items():
        assert_close(gradient, expected[parameter], rtol=1e-3, atol=1e-5 * largest, msg=parameter)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_layers_of_chunks_may_have_gradient_checkpointing(use_reentrant: bool) -> None:
    """They are computed again after the decoder of the chunk has returned.

    The ten queries of a chunk could also be five groups of two, so a wrong number of groups would
    be no error. Reentrant checkpointing compares nothing.
    """
    _, model = detectors("Conditional DETR", group_chunk=2, num_groups=5)
    inputs = batch(model)
    gradients = []
    for _ in range(2):
        model.zero_grad()
        model(**inputs).loss.backward()
        named = model.model.decoder.layers.named_parameters()
        gradients.append({name: p.grad.clone() for name, p in named if p.grad is not None})
        model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    assert len(gradients[0]) > 0
    assert_close(gradients[1], gradients[0])


def test_small_gradients_in_float16_are_not_lost_before_they_are_scaled() -> None:
    """A gradient scaler multiplies the loss, but a loss in chunks has its gradients already."""

    def loss_function(logits: Tensor) -> tuple[Tensor, dict[str, Tensor], None]:
        loss = (1e-8 * logits.float()).sum()
        return loss, {"loss": loss}, None

    gradients = []
    for group_chunk in (None, 1):
        logits = torch.ones(1, 6, 2, dtype=torch.float16, requires_grad=True)
        grouping = Grouping(torch.nn.Identity(), 3, 2, group_chunk)
        loss, _, _ = GroupedLoss(loss_function, grouping)(logits=logits)
        gradients += torch.autograd.grad(2**16 * loss, logits)
    assert gradients[0].all()
    assert torch.equal(gradients[1], gradients[0])


def kept_bytes(model: Any, inputs: dict[str, Any]) -> int:
    """The bytes of the activations that a forward pass keeps for the backward pass."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(**inputs)
    del output
    return sum(kept.values())


def test_chunks_keep_less_than_half_of_the_activations_of_the_groups() -> None:
    """Eleven groups need the activations of one group, and the outputs of all."""
    at_once, in_chunks = detectors("Conditional DETR", group_chunk=1, num_groups=11)
    inputs = batch(at_once)
    of_one_group = kept_bytes(ghf.without_groups(copy.deepcopy(at_once)), inputs)
    more = kept_bytes(at_once, inputs) - of_one_group
    more_in_chunks = kept_bytes(in_chunks, inputs) - of_one_group
    assert more_in_chunks < 0.5 * more


def test_families_that_cannot_be_chunked_are_refused_by_name() -> None:
    for name in WITHOUT_CHUNKS:
        model = DETECTORS[name]()
        family = family_with_own_groups(model) or family_of(model)
        with pytest.raises(UsageError, match=f"^{family.name} cannot be trained in chunks"):
            ghf.with_groups(model, 3, group_chunk=1)
