"""Chunked groups: the training step of all groups, with the memory of a few."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import groupdetr.modeling.flop_formulas  # noqa: F401 (formulas of oneDNN)
from groupdetr.detectors.recipe import Recipe
from groupdetr.errors import UsageError
from groupdetr.groups import attend_across_groups, denoise_primary_group, match_naively
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.modeling.group_chunks import (
    ChunkedModelWithLoss,
    GradientBoundary,
    ModelWithLoss,
)
from groupdetr.structures.camera_images import CameraImages
from groupdetr.structures.images import Images
from groupdetr.structures.step_objects import StepObjects
from groupdetr.structures.targets import Target

from .conftest import every_kind, every_kind_in_ci
from .detectors import (
    DETECTORS_2D,
    build,
    detector_input,
    detector_targets,
    random_images,
    random_target,
    with_choices,
    with_groups,
)
from .test_denoising import CASES as DENOISING_CASES

IMAGES = random_images((2, 3), (3, 1))
TARGETS = [random_target(4), random_target(2, seed=3)]
AnyModelWithLoss = ModelWithLoss | ChunkedModelWithLoss
Losses = dict[str, Tensor]
Gradients = dict[str, Tensor]


def step(
    with_loss: AnyModelWithLoss, images: Images = IMAGES, targets: Sequence[Target] = TARGETS
) -> tuple[Losses, Gradients]:
    """Run forward and backward pass; return the losses by name and the gradients by parameter."""
    with_loss.zero_grad()
    torch.manual_seed(0)  # for the noise of denoising
    loss, losses = with_loss(images_for(with_loss, images), targets_for(with_loss, targets))
    loss.backward()
    assert loss.item() == pytest.approx(sum(x.item() for x in losses.values()), rel=1e-5)
    return losses, gradients(with_loss)


def images_for(with_loss: AnyModelWithLoss, images: Images = IMAGES) -> Images | CameraImages:
    """Return the images in the form and precision that the model takes."""
    pixels = images.pixels.to(next(with_loss.parameters()).dtype)
    return detector_input(with_loss.model.recipe, Images(pixels, images.padding))


def targets_for(with_loss: AnyModelWithLoss, targets: Sequence[Target] = TARGETS) -> list[Target]:
    return detector_targets(with_loss.model.recipe, targets)


def gradients(with_loss: AnyModelWithLoss) -> Gradients:
    return {name: p.grad.clone() for name, p in with_loss.named_parameters() if p.grad is not None}


def float32_model(recipe: Recipe) -> DetectionTransformer:
    return build(recipe).train()


def plain_and_chunked(
    recipe: Recipe, size: int, model: DetectionTransformer | None = None
) -> tuple[ModelWithLoss, ChunkedModelWithLoss]:
    """Return one model with its loss, without and with chunks of ``size`` groups.

    By default it is in double precision, because some gradients are differences of large numbers.
    """
    model = model or float32_model(recipe).double()
    plain = ModelWithLoss(model, recipe.criterion())
    chunked = ChunkedModelWithLoss(model, recipe.criterion(), size)
    return plain, chunked


def flat(gradients: Gradients) -> Tensor:
    """Return all gradients as one vector."""
    return torch.cat([gradient.flatten() for gradient in gradients.values()])


def assert_same_step(expected: tuple[Losses, Gradients], actual: tuple[Losses, Gradients]) -> None:
    """Every loss, and the gradient of every parameter, agree to 1e-6 of their size."""
    expected_losses, expected_gradients = expected
    losses, gradients = actual
    assert losses.keys() == expected_losses.keys()
    for name, loss in expected_losses.items():
        assert losses[name].item() == pytest.approx(loss.item(), rel=1e-6), name
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        # Biases of keys have no effect: without rounding, their gradient would be zero.
        limit = 1e-6 * gradient.norm() + 1e-12
        assert (gradients[name] - gradient).norm() <= limit, name


class FlopCounter(TorchDispatchMode):
    """Counts operations by PyTorch's formulas for matrix products and convolutions."""

    flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        formula = flop_registry.get(func.overloadpacket)
        if formula:
            self.flops += formula(*args, **kwargs, out_val=result)
        return result


def flops(with_loss: AnyModelWithLoss) -> int:
    """Return the multiplications and additions of forward and backward pass."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounter() as counter:
        step(with_loss)
    return counter.flops


# The same result


def test_losses_and_gradients_equal_those_of_all_groups_at_once(recipe: Recipe) -> None:
    """Three groups, in chunks of one, and of two: then the last chunk is smaller.

    Without objects, as with them, no parameter is unused.
    """
    plain, chunked = plain_and_chunked(recipe, 2)
    without_objects = [random_target(0), random_target(0)]
    for targets in (TARGETS, [random_target(3), random_target(0)], without_objects):
        expected = step(plain, targets=targets)
        assert_same_step(expected, step(chunked, targets=targets))
        trainable = {name for name, p in chunked.named_parameters() if p.requires_grad}
        assert gradients(chunked).keys() == trainable
    chunked.groups_at_once = 1
    assert_same_step(expected, step(chunked, targets=without_objects))
    assert_same_step(step(plain), step(chunked))


@every_kind_in_ci
def test_one_chunk_of_all_groups_equals_the_plain_step_bit_for_bit(recipe: Recipe) -> None:
    plain, chunked = plain_and_chunked(recipe, recipe.num_groups)
    _, plain_gradients = step(plain)
    _, chunked_gradients = step(chunked)
    for name, gradient in plain_gradients.items():
        assert torch.equal(chunked_gradients[name], gradient)


@every_kind_in_ci
def test_in_float32_chunks_lose_no_more_precision_than_the_plain_step(recipe: Recipe) -> None:
    """The gradient agrees to 1e-6, except where the plain step itself loses more by rounding.

    In the full-size DN-DETR it loses 6e-5, because its loss divides by the size of tiny boxes.
    """
    double_precision, _ = plain_and_chunked(recipe, 1)
    plain, chunked = plain_and_chunked(recipe, 1, float32_model(recipe))
    _, exact_gradients = step(double_precision)
    plain_losses, plain_gradients = step(plain)
    chunked_losses, chunked_gradients = step(chunked)
    for name, loss in plain_losses.items():
        assert chunked_losses[name].item() == pytest.approx(loss.item(), rel=1e-6), name
    scale = flat(exact_gradients).norm()
    rounding_error = (flat(plain_gradients) - flat(exact_gradients)).norm()
    difference = (flat(chunked_gradients) - flat(plain_gradients)).norm()
    assert difference <= max(1e-6 * scale, 2 * rounding_error)


@every_kind_in_ci
def test_nothing_is_computed_twice(recipe: Recipe) -> None:
    """Neither activations nor the keys and values of the memory, which all groups share.

    What belongs to no group, such as the embedding of a class, is negligible.
    """
    plain, chunked = plain_and_chunked(recipe, 1)
    assert flops(chunked) <= 1.002 * flops(plain)


@pytest.mark.parametrize("recipe", DENOISING_CASES)
def test_the_same_step_with_denoising_in_the_primary_group_only(recipe: Recipe) -> None:
    """Denoising losses are then means over one group, and all others over K groups."""
    primary = with_choices(recipe, denoise=denoise_primary_group)
    plain, chunked = plain_and_chunked(primary, 2)
    assert_same_step(step(plain), step(chunked))


@every_kind_in_ci
def test_the_same_step_with_gradient_checkpointing(recipe: Recipe) -> None:
    checkpointed = float32_model(recipe.with_options(recompute=True)).double()
    plain, _ = plain_and_chunked(recipe, 1)
    _, chunked = plain_and_chunked(recipe, 1, checkpointed)
    assert_same_step(step(plain), step(chunked))


@every_kind
def test_the_same_step_with_accumulation_over_micro_batches(recipe: Recipe) -> None:
    """The gradients of micro-batches add up, each scaled by the gradient that backward gets."""
    steps = []
    for with_loss in plain_and_chunked(recipe, 2):
        with_loss.zero_grad()
        for row in range(2):
            torch.manual_seed(row)
            images = Images(IMAGES.pixels[row : row + 1], IMAGES.padding[row : row + 1])
            targets = TARGETS[row : row + 1]
            loss, losses = with_loss(
                images_for(with_loss, images),
                targets_for(with_loss, targets),
                step=StepObjects([4, 2], parts=2),
            )
            (loss / 2).backward()
        steps.append((losses, gradients(with_loss)))
    assert_same_step(*steps)


@every_kind_in_ci
def test_under_autocast_chunks_lose_no_more_precision_than_the_plain_step(recipe: Recipe) -> None:
    """The gradient of each chunk is rounded to bf16; the error is that of the plain step.

    The backward pass of a chunk runs outside of autocast.
    """
    plain, chunked = plain_and_chunked(recipe, 1, float32_model(recipe))
    exact = flat(step(plain)[1])
    autocast_in_backward: list[bool] = []

    def record_autocast(module: nn.Module, inputs: Any, output: Tensor) -> None:
        def hook(gradient: Tensor) -> None:
            autocast_in_backward.append(torch.is_autocast_enabled("cpu"))

        output.register_hook(hook)

    def autocast_step(with_loss: AnyModelWithLoss) -> tuple[Losses, Tensor]:
        with_loss.zero_grad()
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16):
            loss, losses = with_loss(images_for(with_loss), targets_for(with_loss))
        loss.backward()
        return losses, flat(gradients(with_loss))

    plain_losses, plain_gradient = autocast_step(plain)
    with chunked.model.decoder.layers[0].register_forward_hook(record_autocast):
        chunked_losses, chunked_gradient = autocast_step(chunked)
    for name, loss in plain_losses.items():
        assert chunked_losses[name].item() == pytest.approx(loss.item(), rel=1e-5)
    assert (chunked_gradient - exact).norm() <= 1.05 * (plain_gradient - exact).norm()
    assert (chunked_gradient - plain_gradient).norm() <= 0.01 * exact.norm()
    assert autocast_in_backward == [False] * recipe.num_groups


def test_groups_that_are_not_independent_are_refused() -> None:
    recipe = DETECTORS_2D["conditional-detr"]
    joint = with_choices(recipe, group_attention=attend_across_groups)
    naive = with_choices(recipe, match=match_naively)
    for dependent in (joint, naive):
        with pytest.raises(UsageError, match="--group-chunk"):
            plain_and_chunked(dependent, 1)


# The cost


@every_kind
def test_every_layer_runs_once_for_each_chunk_and_there_is_one_backward_pass(
    recipe: Recipe,
) -> None:
    _, chunked = plain_and_chunked(recipe, 2)
    layers = chunked.model.decoder.layers
    runs: Counter[nn.Module] = Counter()
    for layer in layers:
        layer.register_forward_hook(lambda layer, *_: runs.update([layer]))
    loss, losses = chunked(images_for(chunked), targets_for(chunked))
    assert not any(x.requires_grad for x in losses.values())
    assert all(p.grad is None for p in chunked.parameters()), "only backward sets gradients"
    loss.backward()
    num_chunks = math.ceil(recipe.num_groups / 2)
    assert [runs[layer] for layer in layers] == [num_chunks] * len(layers)
    assert all(p.grad is not None for p in chunked.parameters() if p.requires_grad)


@every_kind
def test_hooks_on_parameters_fire_once(recipe: Recipe) -> None:
    """Distributed training depends on such hooks. The parameters remain the same objects."""
    _, chunked = plain_and_chunked(recipe, 1)
    before = [*chunked.parameters()]
    calls: Counter[str] = Counter()
    trainable = [(name, p) for name, p in chunked.model.named_parameters() if p.requires_grad]
    for name, parameter in trainable:
        parameter.register_hook(lambda _, name=name: calls.update([name]))
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: calls.update([name]))
    step(chunked)
    assert calls == {name: 2 for name, _ in trainable}
    assert all(a is b for a, b in zip(before, chunked.parameters(), strict=True))


@pytest.mark.parametrize("retain_graph", [True, False])
def test_a_second_backward_pass_is_refused_and_leaves_the_gradients_of_the_first(
    retain_graph: bool,
) -> None:
    _, chunked = plain_and_chunked(DETECTORS_2D["conditional-detr"], 1)
    loss, _ = chunked(images_for(chunked), targets_for(chunked))
    loss.backward(retain_graph=retain_graph)
    first = gradients(chunked)
    with pytest.raises(UsageError, match="compute the loss again"):
        loss.backward()
    for name, gradient in gradients(chunked).items():
        assert torch.equal(gradient, first[name]), name


def test_a_second_derivative_is_refused_instead_of_being_zero() -> None:
    x = torch.ones(2, requires_grad=True)
    boundary = GradientBoundary()
    value = boundary.detach(x).pow(3).sum()
    value.backward()
    loss = boundary.rejoin(value.detach())
    with pytest.raises(UsageError, match="has no second derivative"):
        torch.autograd.grad(loss, x, create_graph=True)
    (gradient,) = torch.autograd.grad(loss, x)
    assert torch.equal(gradient, torch.full((2,), 3.0))


@every_kind
def test_the_backward_pass_makes_no_copy_of_the_gradients_of_chunks(recipe: Recipe) -> None:
    """They become those of the parameters: at that time, memory is near its peak."""
    _, chunked = plain_and_chunked(recipe, 1, float32_model(recipe))
    loss, _ = chunked(images_for(chunked), targets_for(chunked))
    addresses = {storage_address(x) for x in loss.grad_fn.saved_tensors if x is not None}
    (0.5 * loss).backward()
    for layer in chunked.model.decoder.layers:
        for weight in (layer.feed_forward.expand.weight, layer.feed_forward.contract.weight):
            assert storage_address(weight.grad) in addresses


class SavedTensorMeter:
    """Measures the bytes that autograd graphs save for backward, each storage once.

    ``peak`` is the maximum. Tensors in ``excluded`` are in memory anyway and do not count.
    """

    def __init__(self, excluded: Sequence[Tensor]) -> None:
        self.excluded = {storage_address(x) for x in excluded}
        self.references: Counter[int] = Counter()
        self.bytes = self.peak = 0

    def add(self, x: Tensor) -> None:
        address = storage_address(x)
        if address not in self.excluded and not self.references[address]:
            self.bytes += x.untyped_storage().nbytes()
            self.peak = max(self.peak, self.bytes)
        self.references[address] += 1

    def remove(self, x: Tensor) -> None:
        address = storage_address(x)
        self.references[address] -= 1
        if address not in self.excluded and not self.references[address]:
            self.bytes -= x.untyped_storage().nbytes()

    @contextmanager
    def measure(self) -> Iterator[None]:
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x: SavedTensor(self, x), lambda saved: saved.x
        ):
            yield


class SavedTensor:
    """A tensor that a graph saves. It is removed from the meter when the graph is freed."""

    def __init__(self, meter: SavedTensorMeter, x: Tensor) -> None:
        self.meter, self.x = meter, x
        meter.add(x)

    def __del__(self) -> None:
        self.meter.remove(self.x)


def storage_address(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


class ConstantModule(nn.Module):
    """Returns ``output`` for all inputs."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, *inputs: Any) -> Any:
        return self.output


def peak_saved_bytes(with_loss: AnyModelWithLoss) -> int:
    """Return the most bytes that decoder and criterion save for backward.

    So do proposals, which are computed with their chunk. The weights, the memory, and queries that
    are computed for all groups at once do not count.
    """
    model = with_loss.model
    images, targets = images_for(with_loss), targets_for(with_loss)
    memory = model.encoder(model.backbone(images.pixels), images)
    excluded = [*model.parameters()]

    def exclude(x: Tensor) -> Tensor:
        excluded.append(x)
        return x

    memory.map(exclude)
    if model.queries.independent_groups() is None:
        torch.manual_seed(0)
        queries = model.queries(memory, targets)
        queries.map(exclude)
        model.queries = ConstantModule(queries)
        model.queries.independent_groups = lambda: None
    model.backbone = ConstantModule(None)
    images_type = model.encoder.images_type
    model.encoder = ConstantModule(memory)
    model.encoder.images_type = images_type
    meter = SavedTensorMeter(excluded)
    with meter.measure():
        loss, _ = with_loss(images, targets)
        loss.backward()
    assert meter.bytes == 0
    return meter.peak


@every_kind_in_ci
def test_memory_saved_for_backward_does_not_grow_with_k(recipe: Recipe) -> None:
    """11 groups, one at a time, save as much as one group.

    In the end they save the gradients of the weights of the decoder and of proposals, if that is
    more. All groups at once save almost 11 times as much: only keys and values are shared.
    """
    eleven_groups = with_groups(recipe.with_options(num_queries=50), 11)
    one_group = with_groups(eleven_groups, 1)
    plain_one, _ = plain_and_chunked(one_group, 1, float32_model(one_group))
    peak_of_one = peak_saved_bytes(plain_one)
    weights = [*eleven_groups.build_decoder().parameters()]
    queries = eleven_groups.build_queries()
    if queries.independent_groups() is not None:
        weights += queries.parameters()
    bytes_of_weights = sum(weight.numel() * weight.element_size() for weight in weights)
    _, chunked = plain_and_chunked(eleven_groups, 1, float32_model(eleven_groups))
    assert peak_saved_bytes(chunked) <= 1.05 * max(peak_of_one, bytes_of_weights)
    plain, _ = plain_and_chunked(eleven_groups, 1, float32_model(eleven_groups))
    assert peak_saved_bytes(plain) > 7 * peak_of_one
