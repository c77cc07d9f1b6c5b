"""Encoder, attention and proposals equal those of transformers' Deformable DETR, an implementation by others.

The detector is another than DAB-Deformable-DETR and DINO; these parts are the same. Weights and features are of double
precision. Places in the image are of single precision here, so that parts agree to 1e-8 where images measure powers of
two, and their places are exact, and to 1e-5 elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from groupdetr.detectors.dab_deformable_detr import DABDeformableDETR
from groupdetr.modeling.attention.deformable_attention import (
    DeformableAttention,
    DeformableCrossAttention,
)
from groupdetr.modeling.encoders.deformable_encoder import DeformableEncoder
from groupdetr.modeling.encoders.feature_projection import AsTheyAre
from groupdetr.modeling.queries.proposals import proposable
from groupdetr.structures.memory import Memory

transformers = pytest.importorskip("transformers")
theirs = pytest.importorskip("transformers.models.deformable_detr.modeling_deformable_detr")

CHANNELS, HEADS, POINTS, HIDDEN, LAYERS = 64, 4, 3, 96, 3
SHAPES = ((16, 32), (8, 16), (4, 8), (2, 4))
PIXELS = (128, 256)
SIZES = {
    "exact": ((128, 128), (64, 256)),
    "odd": ((128, 200), (88, 256)),
}  # of images, padded on either side
TOLERANCES = {"exact": 1e-8, "odd": 1e-5}
RECIPE = DABDeformableDETR(
    channels=CHANNELS, num_heads=HEADS, num_points=POINTS, hidden=HIDDEN, encoder_layers=LAYERS
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def config() -> object:
    return transformers.DeformableDetrConfig(
        d_model=CHANNELS,
        encoder_layers=LAYERS,
        encoder_ffn_dim=HIDDEN,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_n_points=POINTS,
        decoder_n_points=POINTS,
        num_feature_levels=4,
        dropout=0.0,
        two_stage=True,
        with_box_refine=True,
        position_embedding_type="sine",
    )


@pytest.fixture(params=SIZES)
def sizes(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def tolerance(sizes: str) -> float:
    return TOLERANCES[sizes]


@pytest.fixture
def padding(sizes: str) -> Tensor:
    padding = torch.ones(2, *PIXELS, dtype=torch.bool)
    for image, (height, width) in zip(padding, SIZES[sizes]):
        image[:height, :width] = False
    return padding


@pytest.fixture
def maps() -> list[Tensor]:
    return [torch.randn(2, CHANNELS, *shape) for shape in SHAPES]


@pytest.fixture
def encoder() -> DeformableEncoder:
    layers = [RECIPE.encoder_layer() for _ in range(LAYERS)]
    return roughened(
        DeformableEncoder(
            AsTheyAre(), layers, 4, RECIPE.temperature, RECIPE.offset, recompute=False
        )
    )


@torch.no_grad()
def roughened(module: nn.Module) -> nn.Module:
    """No norm the identity, and offsets and shares that depend on the query."""
    for parameter in module.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return module


def copy(ours: DeformableAttention, into: nn.Module) -> None:
    for name, layer in attention(ours):
        into.get_submodule(name).load_state_dict(layer.state_dict())


def attention(ours: DeformableAttention) -> Iterator[tuple[str, nn.Module]]:
    yield "sampling_offsets", ours.offsets
    yield "attention_weights", ours.weights
    yield "value_proj", ours.value
    yield "output_proj", ours.output


def copy_encoder(ours: DeformableEncoder, into: nn.Module) -> None:
    for layer, other in zip(ours.layers, into.layers, strict=True):
        copy(layer.attention, other.self_attn)
        for a, b in (
            (layer.norm1, other.self_attn_layer_norm),
            (layer.norm2, other.final_layer_norm),
            (layer.feed_forward.expand, other.mlp.fc1),
            (layer.feed_forward.contract, other.mlp.fc2),
        ):
            b.load_state_dict(a.state_dict())


def of_levels(memory: Memory) -> dict[str, object]:
    """What their code is told of a memory's levels."""
    sizes = torch.tensor(memory.shapes)
    starts = torch.cat([sizes.new_zeros(1), sizes.prod(1).cumsum(0)[:-1]])
    return {
        "spatial_shapes": sizes,
        "spatial_shapes_list": [*memory.shapes],
        "level_start_index": starts,
    }


def valid_ratios(padding: Tensor) -> Tensor:
    """By their own function, of the padding on every level."""
    masks = [
        ~nn.functional.interpolate(padding[None].float(), size=shape)[0].bool() for shape in SHAPES
    ]
    return torch.stack(
        [theirs.DeformableDetrModel.get_valid_ratio(None, mask, torch.float64) for mask in masks], 1
    )


def test_an_encoder_of_their_weights_remembers_as_theirs(
    config: object,
    encoder: DeformableEncoder,
    maps: list[Tensor],
    padding: Tensor,
    tolerance: float,
) -> None:
    """Two sizes of images, four levels: tokens agree, those of the padding, too."""
    other = theirs.DeformableDetrEncoder(config).double().eval()
    copy_encoder(encoder, other)
    maps = [x.double() for x in maps]
    start = encoder.double().flat(maps, padding)
    expected = other(
        inputs_embeds=start.tokens,
        attention_mask=~start.padding,
        spatial_position_embeddings=start.position,
        valid_ratios=valid_ratios(padding),
        **of_levels(start),
    ).last_hidden_state
    found = encoder.encode(maps, padding).tokens
    assert start.padding.any(1).all()
    assert (found - start.tokens).abs().mean() > 0.1
    assert (found - expected).abs().max() < tolerance


def test_positions_are_theirs(
    encoder: DeformableEncoder, maps: list[Tensor], padding: Tensor
) -> None:
    start = encoder.flat(maps, padding)
    embed = theirs.DeformableDetrSinePositionEmbedding(CHANNELS // 2, normalize=True)
    for level, (found, x) in enumerate(
        zip(start.position.split([h * w for h, w in SHAPES], 1), maps)
    ):
        mask = ~nn.functional.interpolate(padding[None].float(), size=x.shape[-2:])[0].bool()
        expected = (
            embed(x.shape, x.device, x.dtype, mask).flatten(2).transpose(1, 2)
            + encoder.level[level]
        )
        assert (found - expected)[mask.flatten(1)].abs().max() < 1e-5


def test_queries_that_are_boxes_see_what_theirs_see(
    config: object,
    encoder: DeformableEncoder,
    maps: list[Tensor],
    padding: Tensor,
    tolerance: float,
) -> None:
    """A reference in the image without its padding goes to every level by its own share of padding."""
    memory = encoder.double().flat([x.double() for x in maps], padding)
    looks = roughened(DeformableCrossAttention(CHANNELS, HEADS, 4, POINTS)).double()
    other = theirs.DeformableDetrMultiscaleDeformableAttention(config, HEADS, POINTS).double()
    copy(looks, other)
    content, position = torch.randn(2, 2, 3, 7, CHANNELS, dtype=torch.float64)  # [B,K,N,C]
    boxes = torch.rand(2, 3, 7, 4, dtype=torch.float64)
    ratios = valid_ratios(padding).repeat(1, 1, 2)
    expected, _ = other(
        hidden_states=content.flatten(1, 2),
        attention_mask=~memory.padding,
        encoder_hidden_states=memory.tokens,
        position_embeddings=position.flatten(1, 2),
        reference_points=boxes.flatten(1, 2)[:, :, None] * ratios[:, None],
        **of_levels(memory),
    )
    found = looks(content, position, looks.aim(content, boxes), memory)
    assert (found.flatten(1, 2) - expected).abs().max() < tolerance


def test_proposals_are_theirs(
    encoder: DeformableEncoder, maps: list[Tensor], padding: Tensor
) -> None:
    """Which tokens propose, and where. Their norm and projection follow; ours are the groups' own."""
    memory = encoder.flat(maps, padding)
    bare = nn.Module()
    bare.enc_output, bare.enc_output_norm = nn.Identity(), nn.Identity()
    propose = theirs.DeformableDetrModel.gen_encoder_output_proposals
    expected_tokens, expected = propose(bare, memory.tokens, memory.padding, [*memory.shapes])
    tokens, anchors = proposable(memory)
    finite = expected.isfinite().all(-1)
    assert 0 < finite.float().mean() < 1
    assert torch.equal(tokens, expected_tokens)
    assert torch.equal(anchors.isfinite().all(-1), finite)
    assert (anchors - expected)[finite].abs().max() < 1e-5
