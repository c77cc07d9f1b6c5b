"""Encoder, attention and proposals equal those of transformers' Deformable DETR.

The detector differs from DAB-Deformable-DETR and DINO, but these parts are the same. Weights and
features are of double precision. Our positions in the image are of single precision. If images
measure powers of two, positions are exact, and the parts agree to 1e-8, otherwise to 1e-5.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from groupdetr.detectors.dab_deformable_detr import DABDeformableDETR
from groupdetr.modeling.attention.deformable_attention import (
    DeformableAttention,
    DeformableCrossAttention,
)
from groupdetr.modeling.encoders.deformable_encoder import DeformableEncoder
from groupdetr.modeling.queries.proposals import encoder_proposals
from groupdetr.structures.memory import Memory

transformers = pytest.importorskip("transformers")
theirs = pytest.importorskip("transformers.models.deformable_detr.modeling_deformable_detr")

CHANNELS, HEADS, POINTS, HIDDEN, LAYERS = 64, 4, 3, 96, 3
SHAPES = ((16, 32), (8, 16), (4, 8), (2, 4))
PIXELS = (128, 256)
# Sizes of images. One is padded at the right, the other at the bottom.
SIZES = {"exact": ((128, 128), (64, 256)), "inexact": ((128, 200), (88, 256))}
TOLERANCES = {"exact": 1e-8, "inexact": 1e-5}
RECIPE = DABDeformableDETR(
    channels=CHANNELS,
    num_heads=HEADS,
    num_points=POINTS,
    dim_feedforward=HIDDEN,
    encoder_layers=LAYERS,
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
    encoder = DeformableEncoder(
        nn.Identity(), layers, 4, RECIPE.temperature, RECIPE.offset, recompute=False
    )
    roughen(encoder)
    return encoder


@torch.no_grad()
def roughen(module: nn.Module) -> None:
    """Change weights so that no norm is the identity, and sampling depends on the query."""
    for parameter in module.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.1)


def copy_attention(ours: DeformableAttention, theirs: nn.Module) -> None:
    for name in ("sampling_offsets", "attention_weights", "value_proj", "output_proj"):
        state = ours.get_submodule(name).state_dict()
        theirs.get_submodule(name).load_state_dict(state)


def copy_encoder(ours: DeformableEncoder, theirs: nn.Module) -> None:
    for layer, other in zip(ours.layers, theirs.layers, strict=True):
        copy_attention(layer.attention, other.self_attn)
        other.self_attn_layer_norm.load_state_dict(layer.norm1.state_dict())
        other.final_layer_norm.load_state_dict(layer.norm2.state_dict())
        other.mlp.fc1.load_state_dict(layer.feed_forward.expand.state_dict())
        other.mlp.fc2.load_state_dict(layer.feed_forward.contract.state_dict())


def level_arguments(memory: Memory) -> dict[str, object]:
    """Return the arguments of their code that describe the levels of a memory."""
    sizes = torch.tensor(memory.shapes)
    starts = torch.cat([sizes.new_zeros(1), sizes.prod(1).cumsum(0)[:-1]])
    return {
        "spatial_shapes": sizes,
        "spatial_shapes_list": [*memory.shapes],
        "level_start_index": starts,
    }


def valid_ratios(padding: Tensor) -> Tensor:
    """Return the valid ratios of all levels, [B,L,2], by their own function."""
    model = theirs.DeformableDetrModel
    ratios = []
    for shape in SHAPES:
        level_padding = nn.functional.interpolate(padding[None].float(), size=shape)[0].bool()
        ratios.append(model.get_valid_ratio(None, ~level_padding, torch.float64))
    return torch.stack(ratios, 1)


def test_an_encoder_with_their_weights_encodes_like_theirs(
    config: object,
    encoder: DeformableEncoder,
    maps: list[Tensor],
    padding: Tensor,
    tolerance: float,
) -> None:
    """Two sizes of images, four levels. All tokens agree, also those of the padding."""
    other = theirs.DeformableDetrEncoder(config).double().eval()
    copy_encoder(encoder, other)
    maps = [x.double() for x in maps]
    inputs = encoder.double().flatten_levels(maps, padding)
    expected = other(
        inputs_embeds=inputs.tokens,
        attention_mask=~inputs.padding,
        spatial_position_embeddings=inputs.position,
        valid_ratios=valid_ratios(padding),
        **level_arguments(inputs),
    ).last_hidden_state
    encoded = encoder.encode(maps, padding).tokens
    assert inputs.padding.any(1).all()
    assert (encoded - inputs.tokens).abs().mean() > 0.1
    assert (encoded - expected).abs().max() < tolerance


def test_position_embeddings_are_theirs(
    encoder: DeformableEncoder, maps: list[Tensor], padding: Tensor
) -> None:
    memory = encoder.flatten_levels(maps, padding)
    embed = theirs.DeformableDetrSinePositionEmbedding(CHANNELS // 2, normalize=True)
    positions = memory.position.split([height * width for height, width in SHAPES], 1)
    for position, x, level_embed in zip(positions, maps, encoder.level_embed):
        mask = ~nn.functional.interpolate(padding[None].float(), size=x.shape[-2:])[0].bool()
        expected = embed(x.shape, x.device, x.dtype, mask).flatten(2).transpose(1, 2) + level_embed
        assert (position - expected)[mask.flatten(1)].abs().max() < 1e-5


def test_cross_attention_around_boxes_is_theirs(
    config: object,
    encoder: DeformableEncoder,
    maps: list[Tensor],
    padding: Tensor,
    tolerance: float,
) -> None:
    """A reference in the unpadded image is scaled to every level by the valid ratio."""
    memory = encoder.double().flatten_levels([x.double() for x in maps], padding)
    attention = DeformableCrossAttention(CHANNELS, HEADS, 4, POINTS)
    roughen(attention)
    attention.double()
    other = theirs.DeformableDetrMultiscaleDeformableAttention(config, HEADS, POINTS).double()
    copy_attention(attention, other)
    content, position = torch.randn(2, 2, 3, 7, CHANNELS, dtype=torch.float64)  # [B,K,N,C]
    boxes = torch.rand(2, 3, 7, 4, dtype=torch.float64)
    ratios = valid_ratios(padding).repeat(1, 1, 2)
    expected, _ = other(
        hidden_states=content.flatten(1, 2),
        attention_mask=~memory.padding,
        encoder_hidden_states=memory.tokens,
        position_embeddings=position.flatten(1, 2),
        reference_points=boxes.flatten(1, 2)[:, :, None] * ratios[:, None],
        **level_arguments(memory),
    )
    reference = attention.embed_reference(content, boxes)
    attended = attention(content, position, reference, memory)
    assert (attended.flatten(1, 2) - expected).abs().max() < tolerance


def test_proposals_are_theirs(
    encoder: DeformableEncoder, maps: list[Tensor], padding: Tensor
) -> None:
    """The same tokens propose, with the same anchors.

    Their norm and projection are left out here. In our code every group has its own.
    """
    memory = encoder.flatten_levels(maps, padding)
    bare = nn.Module()
    bare.enc_output, bare.enc_output_norm = nn.Identity(), nn.Identity()
    propose = theirs.DeformableDetrModel.gen_encoder_output_proposals
    expected_tokens, expected = propose(bare, memory.tokens, memory.padding, [*memory.shapes])
    tokens, anchors = encoder_proposals(memory)
    finite = expected.isfinite().all(-1)
    assert 0 < finite.float().mean() < 1
    assert torch.equal(tokens, expected_tokens)
    assert torch.equal(anchors.isfinite().all(-1), finite)
    assert (anchors - expected)[finite].abs().max() < 1e-5
