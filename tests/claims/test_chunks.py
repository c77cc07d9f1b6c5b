"""Chunked groups: the step of all groups together, at the memory of a few."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from groupdetr.detectors.recipe import Recipe
from groupdetr.errors import UsageError
from groupdetr.groups import denoise_in_primary, jointly, match_naively
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.modeling.group_chunks import AtOnce, ByChunks
from groupdetr.structures.camera_images import CameraImages
from groupdetr.structures.images import Images
from groupdetr.structures.targets import Target

from .detectors import build, images, shown, target, told, with_groups
from .test_denoising import CASES as DENOISE

IMAGES = images((2, 3), (3, 1))
TARGETS = [target(4), target(2, seed=3)]
SIZES = [1, 2]  # of chunks, of K = 3: the last may be smaller
Step = tuple[
    dict[str, Tensor], dict[str, Tensor]
]  # the named losses, and the gradient of every parameter


def step(
    learner: nn.Module, pictures: Images = IMAGES, targets: Sequence[Target] = TARGETS
) -> Step:
    learner.zero_grad()
    torch.manual_seed(0)  # of noise
    loss, parts = learner(like(learner, pictures), taught(learner, targets))
    loss.backward()
    assert loss.item() == pytest.approx(sum(part.item() for part in parts.values()), rel=1e-5)
    return parts, gradients(learner)


def like(learner: nn.Module, pictures: Images = IMAGES) -> Images | CameraImages:
    """Of its kind and precision."""
    pixels = pictures.pixels.to(next(learner.parameters()).dtype)
    return shown(learner.model.recipe, Images(pixels, pictures.padding))


def taught(learner: nn.Module, targets: Sequence[Target] = TARGETS) -> list[Target]:
    return told(learner.model.recipe, targets)


def gradients(learner: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in learner.named_parameters() if p.grad is not None}


def single(recipe: Recipe) -> DetectionTransformer:
    return build(recipe).train()


def both(
    recipe: Recipe, size: int, model: DetectionTransformer | None = None
) -> tuple[AtOnce, ByChunks]:
    """Of one model, by default in double precision: in single, some gradients are differences of large numbers."""
    model = model or single(recipe).double()
    return AtOnce(model, recipe.criterion()), ByChunks(model, recipe.criterion(), size)


def changed(recipe: Recipe, **choices: Any) -> Recipe:
    """Other functions of `groups.py`."""
    kind = type(
        "Changed", (type(recipe),), {name: staticmethod(choice) for name, choice in choices.items()}
    )
    return kind(**{f.name: getattr(recipe, f.name) for f in fields(recipe)})  # type: ignore[arg-type, no-any-return]


def whole(gradient: dict[str, Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in gradient.values()])


def assert_same(expected: Step, found: Step) -> None:
    """Every loss, and the gradient of every parameter, to 1e-6 of its own size."""
    (losses, gradient), (our_losses, our_gradient) = expected, found
    assert our_losses.keys() == losses.keys()
    for name, loss in losses.items():
        assert our_losses[name].item() == pytest.approx(loss.item(), rel=1e-6), name
    assert our_gradient.keys() == gradient.keys()
    for (
        name,
        grad,
    ) in gradient.items():  # biases of keys change nothing: their gradient is zero but for rounding
        assert (our_gradient[name] - grad).norm() <= 1e-6 * grad.norm() + 1e-12, name


class Work(TorchDispatchMode):
    """Counts them, by PyTorch's formulas for matrix products and convolutions."""

    flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result, formula = func(*args, **(kwargs or {})), flop_registry.get(func.overloadpacket)
        self.flops += formula(*args, **(kwargs or {}), out_val=result) if formula else 0
        return result


def work(learner: nn.Module) -> int:
    """Multiplications and additions of a step, forward and backward."""
    with sdpa_kernel(SDPBackend.MATH), Work() as work:
        step(learner)
    return work.flops


# the same result


@pytest.mark.parametrize("size", SIZES)
def test_losses_and_gradients_are_those_of_all_groups_at_once(recipe: Recipe, size: int) -> None:
    together, chunked = both(recipe, size)
    assert_same(step(together), step(chunked))


@pytest.mark.parametrize("size", SIZES)
def test_in_single_precision_nothing_is_lost_beyond_what_the_plain_step_loses(
    recipe: Recipe, size: int
) -> None:
    """To 1e-6 of the gradient, but where rounding already moves that of the plain step by more: full-size DN-DETR, in
    which tiny boxes divide, by 6e-5."""
    exact, plain, found = (
        step(learner) for learner in (both(recipe, size)[0], *both(recipe, size, single(recipe)))
    )
    for name, loss in plain[0].items():
        assert found[0][name].item() == pytest.approx(loss.item(), rel=1e-6), name
    scale, rounding = whole(exact[1]).norm(), (whole(plain[1]) - whole(exact[1])).norm()
    assert (whole(found[1]) - whole(plain[1])).norm() <= max(1e-6 * scale, 2 * rounding)


def test_nothing_is_computed_twice(recipe: Recipe) -> None:
    """Neither activations, nor the keys and values of the memory, which all groups share. What belongs to no group,
    like the embedding of a class, is of no account."""
    together, chunked = both(recipe, 1)
    assert work(chunked) <= 1.002 * work(together)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "counts", [(3, 0), (0, 0)], ids=["one image without objects", "no objects"]
)
def test_the_same_without_objects(recipe: Recipe, size: int, counts: tuple[int, int]) -> None:
    together, chunked = both(recipe, size)
    targets = [target(count) for count in counts]
    assert_same(step(together, targets=targets), step(chunked, targets=targets))
    assert not [
        name for name, p in chunked.named_parameters() if p.requires_grad and p.grad is None
    ]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("recipe", DENOISE)
def test_the_same_where_the_primary_group_alone_is_denoised(recipe: Recipe, size: int) -> None:
    """The mean over groups is then over one for denoising losses, and over all for others."""
    together, chunked = both(changed(recipe, denoise=denoise_in_primary), size)
    assert_same(step(together), step(chunked))


def test_the_same_with_gradient_checkpointing(recipe: Recipe) -> None:
    frugal = single(recipe.with_options(recompute=True)).double()
    assert_same(step(both(recipe, 1)[0]), step(both(recipe, 1, frugal)[1]))


def test_the_same_in_pieces(recipe: Recipe) -> None:
    """Gradients of pieces of a batch add up, each piece's scaled by what backward is told."""
    found = []
    for learner in both(recipe, 2):
        learner.zero_grad()
        for row in range(2):
            torch.manual_seed(row)
            piece = Images(IMAGES.pixels[row : row + 1], IMAGES.padding[row : row + 1])
            loss, parts = learner(
                like(learner, piece), taught(learner, TARGETS[row : row + 1]), torch.tensor(3.0)
            )
            (loss / 2).backward()
        found.append((parts, gradients(learner)))
    assert_same(*found)


def test_under_autocast_nothing_is_lost_beyond_what_it_loses_anyway(recipe: Recipe) -> None:
    """bf16 rounds each chunk's gradient by itself; the error is that of the plain step, and backward runs outside."""
    together, chunked = both(recipe, 1, single(recipe))
    exact = whole(step(together)[1])
    within: list[bool] = []

    def look(*call: Any) -> None:
        call[-1].register_hook(lambda _: within.append(torch.is_autocast_enabled("cpu")))

    def halved(learner: nn.Module) -> Step:
        learner.zero_grad()
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16):
            loss, parts = learner(like(learner), taught(learner))
        loss.backward()
        return parts, gradients(learner)

    losses, plain = halved(together)
    with chunked.model.decoder.layers[0].register_forward_hook(look):
        our_losses, ours = halved(chunked)
    for name, loss in losses.items():
        assert our_losses[name].item() == pytest.approx(loss.item(), rel=1e-5)
    assert (whole(ours) - exact).norm() <= 1.05 * (whole(plain) - exact).norm()
    assert (whole(ours) - whole(plain)).norm() <= 0.01 * exact.norm()
    assert within == [False] * recipe.num_groups


def test_one_chunk_of_all_groups_is_the_plain_step_bit_for_bit(recipe: Recipe) -> None:
    expected, found = (step(learner) for learner in both(recipe, recipe.num_groups))
    assert all(torch.equal(found[1][name], gradient) for name, gradient in expected[1].items())


def test_groups_that_are_not_independent_are_refused(recipe: Recipe) -> None:
    for choice in ({"compete": jointly}, {"match": match_naively}):
        with pytest.raises(UsageError, match="--group-chunk"):
            both(changed(recipe, **choice), 1)


# the price


def test_every_layer_runs_once_for_each_chunk_and_backward_is_one(recipe: Recipe) -> None:
    _, chunked = both(recipe, 2)
    runs: Counter[nn.Module] = Counter()
    for layer in chunked.model.decoder.layers:
        layer.register_forward_hook(lambda layer, *_: runs.update([layer]))
    loss, parts = chunked(like(chunked), taught(chunked))
    assert not any(part.requires_grad for part in parts.values())
    assert all(p.grad is None for p in chunked.parameters()), (
        "gradients reach parameters through backward alone"
    )
    layers = chunked.model.decoder.layers
    loss.backward()
    assert [runs[layer] for layer in layers] == [math.ceil(recipe.num_groups / 2)] * len(layers)
    assert all(p.grad is not None for p in chunked.parameters() if p.requires_grad)


def test_hooks_on_parameters_fire_once(recipe: Recipe) -> None:
    """So does what distributed training hangs on them. And they are the parameters that they were before."""
    _, chunked = both(recipe, 1)
    before = [*chunked.parameters()]
    fired: Counter[str] = Counter()
    learning = [(name, p) for name, p in chunked.model.named_parameters() if p.requires_grad]
    for name, parameter in learning:
        parameter.register_hook(lambda _, name=name: fired.update([name]))
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: fired.update([name]))
    step(chunked)
    assert fired == {name: 2 for name, _ in learning}
    assert all(a is b for a, b in zip(before, chunked.parameters(), strict=True))


class Kept:
    """Bytes that graphs hold for backward, each storage once; and the most that they ever held."""

    def __init__(self, apart: Sequence[Tensor]) -> None:
        self.apart = {address(x) for x in apart}  # held by others in any case
        self.times: Counter[int] = Counter()
        self.bytes = self.peak = 0

    def take(self, x: Tensor) -> None:
        if address(x) not in self.apart and not self.times[address(x)]:
            self.bytes += x.untyped_storage().nbytes()
            self.peak = max(self.peak, self.bytes)
        self.times[address(x)] += 1

    def drop(self, x: Tensor) -> None:
        self.times[address(x)] -= 1
        if address(x) not in self.apart and not self.times[address(x)]:
            self.bytes -= x.untyped_storage().nbytes()

    @contextmanager
    def counting(self) -> Iterator[None]:
        with torch.autograd.graph.saved_tensors_hooks(lambda x: Held(self, x), lambda held: held.x):
            yield


class Held:
    """A tensor in a graph, until the graph is gone."""

    def __init__(self, kept: Kept, x: Tensor) -> None:
        self.kept, self.x = kept, x
        kept.take(x)

    def __del__(self) -> None:
        self.kept.drop(self.x)


def address(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


class Given(nn.Module):
    """Whatever is asked, ``answer``."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, *asked: Any) -> Any:
        del asked
        return self.answer


def peak(learner: AtOnce | ByChunks) -> int:
    """Bytes that decoder and criterion keep at most, beyond the weights and what the decoder is given."""
    model = learner.model
    pictures, targets = like(learner), taught(learner)
    memory = model.encoder(model.backbone(pictures.pixels), *pictures.beside)
    torch.manual_seed(0)
    queries = model.queries(memory, targets)
    apart = [*model.parameters()]
    for given in (memory, queries):
        given.mapped(lambda x: apart.append(x) or x)
    model.backbone, model.encoder, model.queries = Given(None), Given(memory), Given(queries)
    kept = Kept(apart)
    with kept.counting():
        learner(pictures, targets)[0].backward()
    assert kept.bytes == 0
    return kept.peak


def test_what_is_kept_for_backward_does_not_grow_with_k(recipe: Recipe) -> None:
    """11 groups, one at a time, keep what one keeps, and at last no more than the gradients of the decoder's weights;
    all at once they keep what eleven do, but for keys and values."""
    many = with_groups(recipe.with_options(num_queries=50), 11)
    one = peak(both(with_groups(many, 1), 1, single(with_groups(many, 1)))[0])
    weights = sum(x.numel() * x.element_size() for x in many.decoder().parameters())
    assert peak(both(many, 1, single(many))[1]) <= 1.05 * max(one, weights)
    assert peak(both(many, 1, single(many))[0]) > 7 * one
