"""Deformable attention in PyTorch, and its layer, against transformers' in 64 bits."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.models.deformable_detr.modeling_deformable_detr import (
    DeformableDetrMultiscaleDeformableAttention,
)

from groupdetr.modeling.attention import deformable_attention as deformable
from groupdetr.modeling.attention.deformable_attention import (
    DeformableAttention,
    attending,
    deformable_attention,
    in_pytorch,
)
from groupdetr.structures.memory import Memory
from tests.modeling.attention.samples import (
    SMALL,
    Sizes,
    assert_alike,
    inputs,
    reference,
    sizes,
    with_gradients,
)


@settings(deadline=None, max_examples=40)
@given(sizes(), st.integers(0, 10**6), st.sampled_from([1, 2**18]))
def test_the_operation_and_its_gradients_are_transformers(
    sizes: Sizes, seed: int, cache: int
) -> None:
    """Whether a CPU samples all heads at once or one after the other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deformable, "CACHE", cache)
        found = with_gradients(in_pytorch, sizes.shapes, *inputs(sizes, seed))
    assert_alike(found, with_gradients(reference, sizes.shapes, *inputs(sizes, seed)), 1e-12)


def test_gradients_are_those_of_small_differences() -> None:
    sizes = Sizes(((3, 4), (1, 1)), images=1, queries=3, channels=3, points=2)
    value, locations, weights = (x.requires_grad_() for x in inputs(sizes))
    assert torch.autograd.gradcheck(
        lambda *x: in_pytorch(x[0], sizes.shapes, *x[1:]), (value, locations, weights)
    )


def on_the_lines(sizes: Sizes) -> tuple[Tensor, Tensor, Tensor]:
    """Points on pixel centres and on the image's border: sides must be powers of two, for 32 bits to be exact."""
    value, locations, weights = inputs(sizes)
    sides = torch.tensor([shape[::-1] for shape in sizes.shapes]).unsqueeze(-2)
    return value, (locations * sides * 2).round() / 2 / sides, weights


def test_on_the_lines_where_the_gradient_jumps_it_is_that_to_the_right_and_below() -> None:
    sizes = Sizes(((4, 8), (2, 1)))
    found = with_gradients(in_pytorch, sizes.shapes, *on_the_lines(sizes))
    assert_alike(found, with_gradients(reference, sizes.shapes, *on_the_lines(sizes)), 1e-12)


def test_the_centre_of_a_pixel_is_its_value() -> None:
    value = torch.arange(6.0).reshape(1, 6, 1, 1)
    centres = torch.tensor([[(x + 0.5) / 3, (y + 0.5) / 2] for y in range(2) for x in range(3)])
    seen = deformable_attention(
        value, ((2, 3),), centres.reshape(1, 6, 1, 1, 1, 2), torch.ones(1, 6, 1, 1, 1)
    )
    assert torch.allclose(seen.flatten(), value.flatten(), atol=1e-6)


@pytest.mark.parametrize("far", [-1e9, 1e9])
def test_far_from_the_image_there_is_nothing(far: float) -> None:
    value, locations, weights = (x.float() for x in inputs(SMALL))
    out, *gradients = with_gradients(
        in_pytorch, SMALL.shapes, value, torch.full_like(locations, far), weights
    )
    assert not out.any()
    assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_values_of_16_bits_are_summed_in_32(dtype: torch.dtype) -> None:
    value, locations, weights = inputs(SMALL)
    expected = with_gradients(in_pytorch, SMALL.shapes, value, locations, weights)
    found = with_gradients(
        in_pytorch, SMALL.shapes, value.to(dtype), locations.float(), weights.float()
    )
    assert [x.dtype for x in found] == [dtype, dtype, torch.float32, torch.float32]
    rounding = torch.finfo(dtype).eps
    assert_alike(found[:2] + found[2:], expected, rounding)
    assert_alike([expected[0], expected[1], *found[2:]], expected, 1e-5)


def test_nothing_is_kept_for_backward_but_the_inputs() -> None:
    given, kept = [x.requires_grad_() for x in inputs(SMALL)], []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: kept.append(x.data_ptr()) or x, lambda x: x
    ):
        in_pytorch(given[0], SMALL.shapes, given[1], given[2])
    assert sorted(kept) == sorted(x.data_ptr() for x in given)


def test_shapes_that_do_not_fit_are_refused() -> None:
    value, locations, weights = inputs(SMALL)
    with pytest.raises(ValueError, match="add up to 39 tokens"):
        deformable_attention(value, ((5, 7), (3, 1), (1, 2)), locations, weights)
    for wrong in (locations[:, :, :1], locations[:1], locations[..., :1], locations[:, :, :, :2]):
        with pytest.raises(ValueError, match="must be"):
            deformable_attention(value, SMALL.shapes, wrong, weights)
    with pytest.raises(ValueError, match="must be"):
        deformable_attention(value, SMALL.shapes, locations, weights[..., :2])


def test_a_missing_triton_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    deformable._triton_is_there.cache_clear()
    monkeypatch.setattr(deformable, "find_spec", {}.get)
    with pytest.warns(UserWarning, match="Triton is not installed"):
        assert not deformable._triton_is_there()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not deformable._triton_is_there()
    deformable._triton_is_there.cache_clear()


def test_attending_chooses_within_and_only_within() -> None:
    value, locations, weights = inputs(SMALL)
    with attending(lambda *inputs: inputs[0]), attending(lambda *inputs: inputs[3]):
        assert deformable_attention(value, SMALL.shapes, locations, weights) is weights
    assert deformable_attention(value, SMALL.shapes, locations, weights).shape == (2, 7, 32)


# the layer

C, HEADS, LEVELS, POINTS = 24, 3, 3, 2


def layer() -> DeformableAttention:
    """As training might leave it."""
    torch.manual_seed(0)
    attention = DeformableAttention(C, HEADS, LEVELS, POINTS)
    nn.init.normal_(attention.offsets.weight, std=0.2)
    nn.init.normal_(attention.weights.weight)
    return attention.double()


def memory() -> Memory:
    tokens = torch.randn(2, SMALL.tokens, C, dtype=torch.float64)
    padding = torch.zeros(2, SMALL.tokens, dtype=torch.bool)
    padding[1, [5, 6, 12, 13, 37]] = True
    return Memory(tokens, torch.zeros_like(tokens), padding, SMALL.shapes)


def queries(values: int, rows: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Content [2,K,N,C], position [rows,K,N,C], aim [rows,K,N,L,values]."""
    content, position = (torch.randn(b, 2, 5, C, dtype=torch.float64) for b in (2, rows))
    return content, position, torch.rand(rows, 2, 5, LEVELS, values, dtype=torch.float64)


def transformers_layer(ours: DeformableAttention) -> nn.Module:
    config = SimpleNamespace(d_model=C, num_feature_levels=LEVELS, disable_custom_kernels=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        theirs = DeformableDetrMultiscaleDeformableAttention(config, HEADS, POINTS).double()
    pairs = {
        "value_proj": ours.value,
        "output_proj": ours.output,
        "sampling_offsets": ours.offsets,
        "attention_weights": ours.weights,
    }
    for name, module in pairs.items():
        getattr(theirs, name).load_state_dict(module.state_dict())
    return theirs


@pytest.mark.parametrize("values", [2, 4])
def test_the_layer_is_transformers(values: int) -> None:
    attention, image = layer(), memory()
    content, position, aim = queries(values)
    expected, _ = transformers_layer(attention)(
        content.flatten(1, 2),
        ~image.padding,
        image.tokens,
        position_embeddings=position.flatten(1, 2),
        reference_points=aim.flatten(1, 2),
        spatial_shapes=torch.tensor(image.shapes),
        spatial_shapes_list=image.shapes,
    )
    assert torch.allclose(
        attention(content, position, aim, image).flatten(1, 2), expected, atol=1e-12
    )


def test_groups_look_as_if_each_were_alone_and_images_may_share_their_reference() -> None:
    attention, image = layer(), memory()
    content, position, aim = queries(4, rows=1)
    together = attention(content, position, aim, image)
    for k in range(2):
        one = slice(k, k + 1)
        alone = attention(
            content[:, one], position[:, one].expand(2, -1, -1, -1), aim[:, one], image
        )
        assert torch.allclose(together[:, one], alone, atol=1e-12)


def test_tokens_look_as_a_single_group_of_queries_would() -> None:
    attention, image = layer(), memory()
    aim = torch.rand(2, SMALL.tokens, LEVELS, 2, dtype=torch.float64)
    tokens, position = image.tokens, torch.randn_like(image.tokens)
    grouped = attention(tokens.unsqueeze(1), position.unsqueeze(1), aim.unsqueeze(1), image)
    assert torch.allclose(attention(tokens, position, aim, image), grouped.squeeze(1), atol=1e-12)


def test_what_is_written_in_the_padding_is_not_seen() -> None:
    attention, image, query = layer(), memory(), queries(4)
    before = attention(*query, image)
    image.tokens = torch.where(image.padding.unsqueeze(-1), 1e6, image.tokens)
    assert torch.equal(attention(*query, image), before)


def test_at_first_every_head_looks_its_own_way_and_each_point_further() -> None:
    attention = DeformableAttention(32, 8, 4, 4)
    first = attention.offsets.bias.detach().unflatten(0, (8, 4, 4, 2))
    assert torch.allclose(first[0, 2], torch.tensor([[1.0, 0], [2, 0], [3, 0], [4, 0]]), atol=1e-6)
    assert torch.allclose(first[3, 0, 1], torch.tensor([-2.0, 2.0]), atol=1e-6)
    assert torch.allclose(first.abs().amax(-1), torch.arange(1.0, 5).expand(8, 4, 4))
    for still in (
        attention.offsets.weight,
        attention.weights.weight,
        attention.weights.bias,
        attention.output.bias,
    ):
        assert not still.any()
    assert attention.value.weight.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.1)


def test_under_autocast_values_have_16_bits_and_locations_32() -> None:
    seen = []

    def spy(*inputs: Tensor) -> Tensor:
        seen.extend(x.dtype for x in inputs if isinstance(x, Tensor))
        return in_pytorch(*inputs)

    image = memory()
    image.tokens = image.tokens.float()
    attention, query = layer().float(), [x.float() for x in queries(4)]
    with torch.autocast("cpu", torch.bfloat16), attending(spy):
        assert attention(query[0], query[1], query[2].bfloat16(), image).dtype == torch.bfloat16
    assert seen == [torch.bfloat16, torch.float32, torch.float32]


class Alone(nn.Module):
    """The layer with tensors for inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.shapes = layer(), SMALL.shapes

    def forward(
        self, content: Tensor, position: Tensor, aim: Tensor, tokens: Tensor, padding: Tensor
    ) -> Tensor:
        return self.attention(content, position, aim, Memory(tokens, tokens, padding, self.shapes))


def test_it_compiles_to_one_graph_with_the_same_gradients() -> None:
    model, image = Alone(), memory()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    found = []
    for run in (model, compiled):
        tokens, query = image.tokens.clone().requires_grad_(), queries(2)
        out = run(*(x * 0 + 0.5 for x in query), tokens, image.padding)
        found.append([out, *torch.autograd.grad(out.square().sum(), (tokens, *model.parameters()))])
    for a, b in zip(*found):
        assert torch.allclose(a, b, atol=1e-12)


def test_it_exports_for_any_number_of_images() -> None:
    model, image = Alone(), memory()
    arguments = (*queries(4), image.tokens, image.padding)
    images = torch.export.Dim("images", min=1, max=8)
    exported = torch.export.export(model, arguments, dynamic_shapes=[{0: images}] * 5)
    one = tuple(x[1:] for x in arguments)
    assert torch.allclose(exported.module()(*one), model(*one), atol=1e-12)
    assert "grid_sampler" in str(exported.graph)
