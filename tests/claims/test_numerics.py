"""Speed and memory are bought without a change of result."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from groupdetr.detectors.petr import PETR
from groupdetr.detectors.recipe import Recipe
from groupdetr.errors import DivergedError
from groupdetr.modeling.attention.multihead import attend
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.structures.images import Images
from groupdetr.structures.outputs import Outputs

from .detectors import build, images, shown, target, told

IMAGES, EVEN = images((2, 3), (3, 1)), images((2, 3), (2, 3))
TARGETS = [target(4), target(2, seed=3)]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
FUSED = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]


def test_recomputing_activations_gives_the_same_gradients(recipe: Recipe) -> None:
    plain, frugal = build(recipe).train(), build(recipe.with_options(recompute=True)).train()
    for model in (plain, frugal):
        torch.manual_seed(0)  # of points
        outputs, targets = model(shown(recipe, IMAGES)), told(recipe, TARGETS)
        torch.stack([*recipe.criterion()(outputs, targets).values()]).sum().backward()
    for (name, a), b in zip(plain.named_parameters(), frugal.parameters()):
        assert (a.grad is None) == (b.grad is None)
        assert a.grad is None or torch.allclose(a.grad, b.grad, atol=1e-6), name


def test_losses_are_computed_in_single_precision_under_autocast(
    model: DetectionTransformer,
) -> None:
    criterion, targets = model.recipe.criterion(), told(model.recipe, TARGETS)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(shown(model.recipe, IMAGES))
        losses = criterion(outputs, targets)
    assert outputs.layers[-1].logits.dtype == torch.bfloat16
    exact = [layer.of(layer.logits.float(), layer.place.float()) for layer in outputs.layers]
    expected = criterion(Outputs(exact, outputs.queries), targets)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(expected[name].item(), rel=1e-6)
    torch.stack([*losses.values()]).sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_cost_that_is_not_finite_never_reaches_the_solver(
    model: DetectionTransformer, value: float
) -> None:
    outputs = model(shown(model.recipe, IMAGES))
    outputs.layers[1].place.data[1, 2, 3] = value
    with pytest.raises(DivergedError, match="layer1"):
        model.recipe.criterion()(outputs, told(model.recipe, TARGETS))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("pictures", [IMAGES, EVEN], ids=["padded", "not padded"])
def test_all_attention_is_fused(recipe: Recipe, pictures: Images, device: str) -> None:
    """The explicit attention matrix is never built, neither forward nor backward; on a GPU not for dropout either."""
    model = build(recipe.with_options(dropout=0.0 if device == "cpu" else 0.1)).train().to(device)
    targets = [target.to(device) for target in told(recipe, TARGETS)]
    with sdpa_kernel(FUSED):
        outputs = model(shown(recipe, pictures).to(device), targets)
    assert outputs.layers[-1].logits.isfinite().all()
    torch.stack([*model.recipe.criterion()(outputs, targets).values()]).sum().backward()


def test_images_of_one_size_are_attended_to_without_a_mask_and_give_the_same(
    recipe: Recipe,
) -> None:
    if isinstance(recipe, PETR):
        pytest.skip("images of cameras are of one size, always")
    model = build(recipe).eval()
    assert IMAGES.padded
    assert not EVEN.padded
    masked, bare = (model(replace(EVEN, padded=padded)).answer for padded in (True, False))
    assert torch.allclose(masked.logits, bare.logits, atol=1e-5)
    assert torch.allclose(masked.place, bare.place, atol=1e-5)
    memory = model.encoder(model.backbone(EVEN.pixels), EVEN.padding, EVEN.padded)
    assert memory.unseen is None


@pytest.mark.filterwarnings("ignore:Flash attention")
def test_values_narrower_than_keys_would_fall_back_on_a_cpu_if_they_were_not_widened() -> None:
    """What `attend` is for, and the proof that the test above can fail."""
    query, key, value = torch.randn(2, 8, 5, 64), torch.randn(2, 8, 7, 64), torch.randn(2, 8, 7, 32)
    with sdpa_kernel(FUSED):
        with pytest.raises(RuntimeError, match=r"No viable backend|No available kernel"):
            F.scaled_dot_product_attention(query, key, value)
        fused = attend(query, key, value)
    explicit = ((query @ key.mT) / 8).softmax(-1) @ value
    assert torch.allclose(fused, explicit.transpose(1, 2).flatten(2), atol=1e-5)
