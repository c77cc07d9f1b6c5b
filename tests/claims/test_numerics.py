"""Options for speed and memory do not change the result."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from groupdetr.detectors.petr import PETR
from groupdetr.detectors.recipe import Recipe
from groupdetr.errors import DivergedError
from groupdetr.modeling.attention.multihead import dot_product_attention
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.structures.outputs import Outputs

from .conftest import every_kind
from .detectors import build, detector_input, detector_targets, random_images, random_target

IMAGES = random_images((2, 3), (3, 1))
EQUAL_SIZES = random_images((2, 3), (2, 3))
TARGETS = [random_target(4), random_target(2, seed=3)]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
FUSED = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]


def test_gradient_checkpointing_gives_the_same_gradients(recipe: Recipe) -> None:
    plain = build(recipe).train()
    checkpointed = build(recipe.with_options(recompute=True)).train()
    for model in (plain, checkpointed):
        torch.manual_seed(0)  # for the points at which masks are compared, and for denoising
        targets = detector_targets(recipe, TARGETS)
        losses = recipe.criterion()(model(detector_input(recipe, IMAGES), targets), targets)
        torch.stack([*losses.values()]).sum().backward()
    for (name, a), b in zip(plain.named_parameters(), checkpointed.parameters()):
        assert (a.grad is None) == (b.grad is None)
        assert a.grad is None or torch.allclose(a.grad, b.grad, atol=1e-6), name


def test_losses_are_computed_in_float32_under_autocast(model: DetectionTransformer) -> None:
    criterion = model.recipe.criterion()
    targets = detector_targets(model.recipe, TARGETS)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(detector_input(model.recipe, IMAGES), targets)
        losses = criterion(outputs, targets)
    assert outputs.layers[-1].logits.dtype == torch.bfloat16
    float32_layers = []
    for layer in outputs.layers:
        float32_layers.append(layer.with_values(layer.logits.float(), layer.location.float()))
    expected = criterion(Outputs(float32_layers, outputs.queries), targets)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(expected[name].item(), rel=1e-6)
    torch.stack([*losses.values()]).sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@every_kind
def test_a_matching_cost_that_is_not_finite_never_reaches_the_solver(recipe: Recipe) -> None:
    model = build(recipe).train()
    outputs = model(detector_input(model.recipe, IMAGES))
    for value in (float("nan"), float("inf")):
        outputs.layers[1].location.data[1, 2, 3] = value
        with pytest.raises(DivergedError, match="layer1"):
            model.recipe.criterion()(outputs, detector_targets(model.recipe, TARGETS))


@pytest.mark.parametrize("device", DEVICES)
def test_all_attention_is_fused(recipe: Recipe, device: str) -> None:
    """The attention matrix is never built, neither in the forward nor in the backward pass.

    On a GPU this holds for dropout, too.
    """
    dropout = 0.0 if device == "cpu" else 0.1
    model = build(recipe.with_options(dropout=dropout)).train().to(device)
    targets = [target.to(device) for target in detector_targets(recipe, TARGETS)]
    with sdpa_kernel(FUSED):
        outputs = model(detector_input(recipe, IMAGES).to(device), targets)
    assert outputs.layers[-1].logits.isfinite().all()
    torch.stack([*model.recipe.criterion()(outputs, targets).values()]).sum().backward()


def test_images_of_one_size_need_no_attention_mask_and_give_the_same(recipe: Recipe) -> None:
    if isinstance(recipe, PETR):
        pytest.skip("the images of cameras always have one size")
    model = build(recipe).eval()
    assert IMAGES.padded
    assert not EQUAL_SIZES.padded
    with_mask = model(replace(EQUAL_SIZES, padded=True)).final
    without_mask = model(replace(EQUAL_SIZES, padded=False)).final
    assert torch.allclose(with_mask.logits, without_mask.logits, atol=1e-5)
    assert torch.allclose(with_mask.location, without_mask.location, atol=1e-5)
    memory = model.encoder(model.backbone(EQUAL_SIZES.pixels), EQUAL_SIZES)
    assert memory.key_padding_mask is None


@pytest.mark.filterwarnings("ignore:Flash attention")
def test_fused_kernels_on_a_cpu_need_values_as_wide_as_keys() -> None:
    """So `dot_product_attention` widens them.

    This also proves that the test of fused attention can fail.
    """
    query, key = torch.randn(2, 8, 5, 64), torch.randn(2, 8, 7, 64)
    value = torch.randn(2, 8, 7, 32)
    with sdpa_kernel(FUSED):
        with pytest.raises(RuntimeError, match=r"No viable backend|No available kernel"):
            F.scaled_dot_product_attention(query, key, value)
        fused = dot_product_attention(query, key, value)
    explicit = ((query @ key.mT) / 8).softmax(-1) @ value
    assert torch.allclose(fused, explicit.transpose(1, 2).flatten(2), atol=1e-5)
