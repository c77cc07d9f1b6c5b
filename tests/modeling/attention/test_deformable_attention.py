"""Deformable attention in PyTorch, and its layer, equal those of transformers in float64."""

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
    deformable_attention,
    in_pytorch,
    use_backend,
)
from groupdetr.structures.memory import Memory
from tests.modeling.attention.samples import (
    SMALL,
    Sizes,
    assert_close,
    on_pixel_centre_lines,
    random_inputs,
    random_sizes,
    transformers_attention,
    with_gradients,
)


@settings(deadline=None, max_examples=40)
@given(random_sizes(), st.integers(0, 10**6), st.sampled_from([1, 2**18]))
def test_output_and_gradients_equal_transformers(
    sizes: Sizes, seed: int, max_cpu_samples: int
) -> None:
    """This holds whether a CPU samples all heads at once or one after the other."""
    inputs = random_inputs(sizes, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deformable, "MAX_CPU_SAMPLES", max_cpu_samples)
        actual = with_gradients(in_pytorch, sizes.shapes, *inputs)
    expected = with_gradients(transformers_attention, sizes.shapes, *inputs)
    assert_close(actual, expected, 1e-12)


def test_gradients_equal_finite_differences() -> None:
    sizes = Sizes(((3, 4), (1, 1)), images=1, queries=3, channels=3, points=2)

    def attend(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return in_pytorch(value, sizes.shapes, locations, weights)

    assert torch.autograd.gradcheck(attend, tuple(x.requires_grad_() for x in random_inputs(sizes)))


def test_at_discontinuities_the_gradient_is_that_of_the_pixel_to_the_right_and_below() -> None:
    sizes = Sizes(((4, 8), (2, 1)))
    inputs = on_pixel_centre_lines(sizes)
    actual = with_gradients(in_pytorch, sizes.shapes, *inputs)
    expected = with_gradients(transformers_attention, sizes.shapes, *inputs)
    assert_close(actual, expected, 1e-12)


@pytest.mark.parametrize("coordinate", [-1e9, 1e9])
def test_far_outside_the_image_output_and_gradients_are_zero(coordinate: float) -> None:
    value, locations, weights = (x.float() for x in random_inputs(SMALL))
    outside = torch.full_like(locations, coordinate)
    out, *gradients = with_gradients(in_pytorch, SMALL.shapes, value, outside, weights)
    assert not out.any()
    assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_values_of_16_bits_are_summed_in_32(dtype: torch.dtype) -> None:
    value, locations, weights = random_inputs(SMALL)
    expected = with_gradients(in_pytorch, SMALL.shapes, value, locations, weights)
    actual = with_gradients(
        in_pytorch, SMALL.shapes, value.to(dtype), locations.float(), weights.float()
    )
    assert [x.dtype for x in actual] == [dtype, dtype, torch.float32, torch.float32]
    assert_close(actual, expected, torch.finfo(dtype).eps)
    # The gradients of locations and weights have the precision of 32 bits.
    assert_close([*expected[:2], *actual[2:]], expected, 1e-5)


def test_only_the_inputs_are_kept_for_backward() -> None:
    value, locations, weights = (x.requires_grad_() for x in random_inputs(SMALL))
    saved_pointers = []

    def pack(x: Tensor) -> Tensor:
        saved_pointers.append(x.data_ptr())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        in_pytorch(value, SMALL.shapes, locations, weights)
    assert sorted(saved_pointers) == sorted(x.data_ptr() for x in (value, locations, weights))


def test_inputs_whose_shapes_do_not_fit_are_refused() -> None:
    value, locations, weights = random_inputs(SMALL)
    with pytest.raises(ValueError, match="add up to 39 tokens"):
        deformable_attention(value, ((5, 7), (3, 1), (1, 2)), locations, weights)
    for wrong in (locations[:, :, :1], locations[:1], locations[..., :1], locations[:, :, :, :2]):
        with pytest.raises(ValueError, match="must be"):
            deformable_attention(value, SMALL.shapes, wrong, weights)
    with pytest.raises(ValueError, match="must be"):
        deformable_attention(value, SMALL.shapes, locations, weights[..., :2])


def test_a_missing_triton_causes_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    deformable._warn_without_triton.cache_clear()
    monkeypatch.setattr(deformable, "TRITON_INSTALLED", False)
    with pytest.warns(UserWarning, match="Triton is not installed"):
        assert deformable._backend_on_cuda() is in_pytorch
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert deformable._backend_on_cuda() is in_pytorch
    deformable._warn_without_triton.cache_clear()


def test_use_backend_selects_a_backend_only_inside_its_block() -> None:
    value, locations, weights = random_inputs(SMALL)
    with use_backend(lambda *inputs: inputs[0]), use_backend(lambda *inputs: inputs[3]):
        assert deformable_attention(value, SMALL.shapes, locations, weights) is weights
    assert deformable_attention(value, SMALL.shapes, locations, weights).shape == (2, 7, 32)


# The layer

C, HEADS, LEVELS, POINTS = 24, 3, 3, 2


def random_layer() -> DeformableAttention:
    """A layer whose sampling offsets and attention weights depend on the query."""
    torch.manual_seed(0)
    attention = DeformableAttention(C, HEADS, LEVELS, POINTS)
    nn.init.normal_(attention.sampling_offsets.weight, std=0.2)
    nn.init.normal_(attention.attention_weights.weight)
    return attention.double()


def random_memory() -> Memory:
    tokens = torch.randn(2, SMALL.tokens, C, dtype=torch.float64)
    padding = torch.zeros(2, SMALL.tokens, dtype=torch.bool)
    padding[1, [5, 6, 12, 13, 37]] = True
    return Memory.from_tokens(
        tokens=tokens, position=torch.zeros_like(tokens), padding=padding, shapes=SMALL.shapes
    )


def random_queries(reference_size: int, rows: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Content [2,K,N,C], position [rows,K,N,C], reference [rows,K,N,L,reference_size]."""
    content = torch.randn(2, 2, 5, C, dtype=torch.float64)
    position = torch.randn(rows, 2, 5, C, dtype=torch.float64)
    reference = torch.rand(rows, 2, 5, LEVELS, reference_size, dtype=torch.float64)
    return content, position, reference


def transformers_layer(ours: DeformableAttention) -> nn.Module:
    """transformers' layer with the weights of ours."""
    config = SimpleNamespace(d_model=C, num_feature_levels=LEVELS, disable_custom_kernels=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        theirs = DeformableDetrMultiscaleDeformableAttention(config, HEADS, POINTS).double()
    projections = {
        "value_proj": ours.value_proj,
        "output_proj": ours.output_proj,
        "sampling_offsets": ours.sampling_offsets,
        "attention_weights": ours.attention_weights,
    }
    for name, projection in projections.items():
        theirs.get_submodule(name).load_state_dict(projection.state_dict())
    return theirs


@pytest.mark.parametrize("reference_size", [2, 4])
def test_the_layer_equals_transformers(reference_size: int) -> None:
    attention, memory = random_layer(), random_memory()
    content, position, reference = random_queries(reference_size)
    expected, _ = transformers_layer(attention)(
        content.flatten(1, 2),
        ~memory.padding,
        memory.tokens,
        position_embeddings=position.flatten(1, 2),
        reference_points=reference.flatten(1, 2),
        spatial_shapes=torch.tensor(memory.shapes),
        spatial_shapes_list=memory.shapes,
    )
    actual = attention(content, position, reference, memory).flatten(1, 2)
    assert torch.allclose(actual, expected, atol=1e-12)


def test_groups_are_independent_and_images_may_share_their_reference() -> None:
    attention, memory = random_layer(), random_memory()
    content, position, reference = random_queries(4, rows=1)
    all_groups = attention(content, position, reference, memory)
    for k in range(2):
        group = slice(k, k + 1)
        group_position = position[:, group].expand(2, -1, -1, -1)
        one_group = attention(content[:, group], group_position, reference[:, group], memory)
        assert torch.allclose(all_groups[:, group], one_group, atol=1e-12)


def test_tokens_attend_like_one_group_of_queries() -> None:
    attention, memory = random_layer(), random_memory()
    reference = torch.rand(2, SMALL.tokens, LEVELS, 2, dtype=torch.float64)
    tokens, position = memory.tokens, torch.randn_like(memory.tokens)
    as_group = attention(tokens.unsqueeze(1), position.unsqueeze(1), reference.unsqueeze(1), memory)
    as_tokens = attention(tokens, position, reference, memory)
    assert torch.allclose(as_tokens, as_group.squeeze(1), atol=1e-12)


def test_tokens_in_the_padding_have_no_effect() -> None:
    attention, memory, queries = random_layer(), random_memory(), random_queries(4)
    before = attention(*queries, memory)
    memory.tokens = torch.where(memory.padding.unsqueeze(-1), 1e6, memory.tokens)
    assert torch.equal(attention(*queries, memory), before)


def test_initially_every_head_has_its_own_ray_and_later_points_are_farther_along_it() -> None:
    attention = DeformableAttention(32, 8, 4, 4)
    offsets = attention.sampling_offsets.bias.detach().unflatten(0, (8, 4, 4, 2))
    first_ray = torch.tensor([[1.0, 0], [2, 0], [3, 0], [4, 0]])
    assert torch.allclose(offsets[0, 2], first_ray, atol=1e-6)
    assert torch.allclose(offsets[3, 0, 1], torch.tensor([-2.0, 2.0]), atol=1e-6)
    assert torch.allclose(offsets.abs().amax(-1), torch.arange(1.0, 5).expand(8, 4, 4))
    for zero in (
        attention.sampling_offsets.weight,
        attention.attention_weights.weight,
        attention.attention_weights.bias,
        attention.output_proj.bias,
    ):
        assert not zero.any()
    assert attention.value_proj.weight.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.1)


def test_under_autocast_values_have_16_bits_and_locations_32() -> None:
    dtypes = []

    def record_dtypes(*inputs: Tensor) -> Tensor:
        dtypes.extend(x.dtype for x in inputs if isinstance(x, Tensor))
        return in_pytorch(*inputs)

    memory = random_memory()
    memory.tokens = memory.tokens.float()
    attention = random_layer().float()
    content, position, reference = (x.float() for x in random_queries(4))
    with torch.autocast("cpu", torch.bfloat16), use_backend(record_dtypes):
        attended = attention(content, position, reference.bfloat16(), memory)
    assert attended.dtype == torch.bfloat16
    assert dtypes == [torch.bfloat16, torch.float32, torch.float32]


class TensorInputs(nn.Module):
    """The layer with tensors as its only inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.shapes = random_layer(), SMALL.shapes

    def forward(
        self, content: Tensor, position: Tensor, reference: Tensor, tokens: Tensor, padding: Tensor
    ) -> Tensor:
        memory = Memory.from_tokens(
            tokens=tokens, position=tokens, padding=padding, shapes=self.shapes
        )
        return self.attention(content, position, reference, memory)


def test_the_layer_compiles_to_one_graph_with_the_same_gradients() -> None:
    model, memory = TensorInputs(), random_memory()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    results = []
    for run in (model, compiled):
        tokens = memory.tokens.clone().requires_grad_()
        queries = (torch.full_like(x, 0.5) for x in random_queries(2))
        out = run(*queries, tokens, memory.padding)
        gradients = torch.autograd.grad(out.square().sum(), (tokens, *model.parameters()))
        results.append([out, *gradients])
    for eager, other in zip(*results):
        assert torch.allclose(eager, other, atol=1e-12)


def test_the_layer_exports_for_any_number_of_images() -> None:
    model, memory = TensorInputs(), random_memory()
    arguments = (*random_queries(4), memory.tokens, memory.padding)
    images = torch.export.Dim("images", min=1, max=8)
    exported = torch.export.export(model, arguments, dynamic_shapes=[{0: images}] * 5)
    one_image = tuple(x[1:] for x in arguments)
    assert torch.allclose(exported.module()(*one_image), model(*one_image), atol=1e-12)
    assert "grid_sampler" in str(exported.graph)
