"""`isolation` measures whole models by hooks, and names the module in which groups leak."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from groupdetr.analysis.isolation import isolation
from groupdetr.analysis.module_isolation import ModuleIsolation
from groupdetr.analysis.query_sources import MeasurementError
from groupdetr.groups import MultiheadAttentionWithinGroups
from tests.docs.stock_detr import StockDETR

B, N, C = 2, 5, 16
IMAGES = torch.rand(B, 3, 32, 40, generator=torch.Generator().manual_seed(1))


def blocked_between_groups(num_groups: int) -> Tensor:
    """The attention mask [K*N,K*N] of a decoder with groups, True where attention is blocked."""
    return ~torch.block_diag(*[torch.ones(N, N)] * num_groups).bool()


class HandwrittenGroups(nn.Module):
    """A DETR with torch's own decoder, whose groups are an attention mask, in training mode.

    It is sequence first, and evaluation runs one group.
    """

    def __init__(self, num_groups: int, is_blocked: bool = True) -> None:
        super().__init__()
        self.num_groups = num_groups
        self.is_blocked = is_blocked
        self.backbone = nn.Sequential(nn.Conv2d(3, C, 8, stride=8), nn.BatchNorm2d(C))
        self.query_embed = nn.Embedding(num_groups * N, C)
        layer = nn.TransformerDecoderLayer(C, nhead=2, dim_feedforward=24, dropout=0.3)
        self.decoder = nn.TransformerDecoder(layer, num_layers=2)
        self.class_embed = nn.Linear(C, 4)
        self.bbox_embed = nn.Linear(C, 4)

    def forward(self, images: Tensor) -> dict[str, Any]:
        memory = self.backbone(images).flatten(2).permute(2, 0, 1)
        queries = self.query_embed.weight if self.training else self.query_embed.weight[:N]
        target = queries.unsqueeze(1).repeat(1, len(images), 1)
        mask = None
        if self.training and self.is_blocked:
            mask = blocked_between_groups(self.num_groups)
        hidden = self.decoder(target, memory, tgt_mask=mask).transpose(0, 1)
        boxes = self.bbox_embed(hidden).sigmoid()
        return {"pred_logits": self.class_embed(hidden), "pred_boxes": boxes, "loss_weight": None}


class SplitAfterBatch(nn.Module):
    """The published mistake of detrex's port of Group DETR, with queries [K*N,B,C].

    N and B are read before the groups are split, and [N,K*B,C] is reshaped to [K*N,B,C] with them.
    So the attention runs over all queries, in another order, and their results go to others.
    """

    batch_first = False  # torch's decoder reads it

    def __init__(self, attention: nn.MultiheadAttention, num_groups: int) -> None:
        super().__init__()
        self.attention = attention
        self.num_groups = num_groups

    def forward(self, query: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        num_rows, num_images, channels = query.shape
        split = torch.cat(query.split(num_rows // self.num_groups), dim=1)  # [N,K*B,C]
        x = split.reshape(num_rows, num_images, channels)
        return self.attention(x, x, x)[0], None


class ImagesAsGroups(nn.Module):
    """Batch first and sequence first are mixed up: [K*N,B,C] is reshaped to [K*B,N,C].

    A sequence has queries of one group, but of two images.
    """

    batch_first = False  # torch's decoder reads it

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, query: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        x = query.reshape(-1, N, query.shape[-1]).transpose(0, 1)  # [N,K*B,C]
        attended = self.attention(x, x, x)[0].transpose(0, 1)
        return attended.reshape(query.shape), None


def measure(model: nn.Module, num_groups: int, *names: str) -> ModuleIsolation:
    return isolation(model, names, num_groups, inputs=IMAGES)


def test_a_stock_decoder_with_groups_written_by_hand_is_isolated() -> None:
    """It is in training mode, with dropout and a batch norm, and nothing of it is named."""
    num_groups = 11
    result = measure(HandwrittenGroups(num_groups), num_groups)
    assert result.holds
    assert max(result.leak, result.image_leak) < 1e-5
    assert (result.num_groups, result.num_queries) == (num_groups, N)
    assert result.queries == ("query_embed.weight",)
    assert result.changed_inputs[0] == "decoder (TransformerDecoder)"
    assert result.leaking_module is None


def test_the_published_mistake_is_found_in_its_layer() -> None:
    num_groups = 11
    model = HandwrittenGroups(num_groups)
    layers = model.decoder.layers
    layers[1].self_attn = SplitAfterBatch(layers[1].self_attn, num_groups)
    result = measure(model, num_groups)
    assert not result.holds
    assert result.leak > 0.01
    assert result.leaking_module == "decoder.layers.1.self_attn.attention (MultiheadAttention)"
    assert result.leaking_module_change is not None
    assert result.leaking_module_change > 0.01


def test_groups_that_are_mixed_up_with_images_are_found() -> None:
    """No group changes another group. Only the change of one image alone shows the mistake."""
    model = HandwrittenGroups(3)
    model.decoder.layers[0].self_attn = ImagesAsGroups(model.decoder.layers[0].self_attn)
    result = measure(model, 3)
    assert not result.holds
    assert result.leak < 1e-5
    assert result.image_leak > 0.01
    assert result.leaking_module == "decoder.layers.0.self_attn (ImagesAsGroups)"


def test_attention_across_all_groups_is_found_in_the_first_layer() -> None:
    result = measure(HandwrittenGroups(3, is_blocked=False), 3)
    assert result.leak > 0.01
    assert result.leaking_module == "decoder.layers.0.self_attn (MultiheadAttention)"


class Anchors(nn.Module):
    """Queries [1,K,N,C] of a class of its own, with the anchors beside them, as DAB-DETR's.

    No module takes the queries of every image: the attention has all groups of all images in one
    axis. If ``mixes_images``, a sequence has the queries of one group in all images.
    """

    def __init__(self, num_groups: int, sees_images: bool, mixes_images: bool = False) -> None:
        super().__init__()
        self.sees_images = sees_images
        self.mixes_images = mixes_images
        self.content = nn.Parameter(torch.randn(1, num_groups, N, C))
        self.anchors = nn.Parameter(torch.rand(num_groups, N, 4))
        self.embed = nn.Linear(4, C)
        self.attention = nn.MultiheadAttention(C, 2, batch_first=True)

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = (self.content + self.embed(self.anchors)).repeat(len(images), 1, 1, 1)
        if self.sees_images:
            x = x + images.mean((1, 2, 3)).view(-1, 1, 1, 1)
        if self.mixes_images:
            sequences = x.transpose(0, 1).flatten(1, 2)  # [K,B*N,C]
            attended = self.attention(sequences, sequences, sequences)[0]
            return attended.unflatten(1, (len(images), N)).transpose(0, 1), [self.anchors]
        sequences = x.flatten(0, 1)  # [B*K,N,C]
        return self.attention(sequences, sequences, sequences)[0].view(x.shape), [self.anchors]


def test_split_axes_of_groups_and_several_parameters_are_measured_together() -> None:
    """Images that are mixed up are found by their pixels, where no module takes all queries."""
    result = measure(Anchors(3, sees_images=True), 3)
    assert result.holds
    assert result.queries == ("content", "anchors")
    assert result.changed_inputs == ()
    mixed = measure(Anchors(3, sees_images=True, mixes_images=True), 3)
    assert mixed.leak < 1e-5
    assert mixed.image_leak > 1e-3
    with pytest.raises(MeasurementError, match="mixed up with images would not be noticed"):
        measure(Anchors(3, sees_images=False), 3)


def test_queries_that_are_inputs_of_a_decoder_are_found_or_named() -> None:
    layer = nn.TransformerDecoderLayer(C, nhead=2, dim_feedforward=24, batch_first=True)
    decoder = nn.TransformerDecoder(layer, num_layers=1)
    inputs = {
        "tgt": torch.randn(B, 3 * N, C),
        "memory": torch.randn(B, 7, C),
        "tgt_mask": torch.zeros(3 * N, 3 * N).masked_fill(blocked_between_groups(3), -torch.inf),
    }
    assert isolation(decoder, num_groups=3, inputs=inputs).queries == ("tgt",)
    assert isolation(decoder, "tgt", 3, inputs=inputs).holds
    del inputs["tgt_mask"]
    leaking = isolation(decoder, "tgt", 3, inputs=inputs)
    assert leaking.leaking_module == "layers.0.self_attn (MultiheadAttention)"
    # As many tokens as queries: nothing tells them apart.
    inputs["memory"] = torch.randn(B, 3 * N, C)
    with pytest.raises(MeasurementError, match="several inputs may be the queries: tgt, memory"):
        isolation(decoder, num_groups=3, inputs=inputs)


class GroupsFirst(HandwrittenGroups):
    """A model that returns [K,B,N,.]."""

    def forward(self, images: Tensor) -> dict[str, Any]:
        outputs = super().forward(images)
        names = ("pred_logits", "pred_boxes")
        return {name: outputs[name].unflatten(1, (-1, N)).movedim(1, 0) for name in names}


def test_groups_may_be_the_first_axis_of_the_outputs() -> None:
    assert measure(GroupsFirst(3), 3).holds
    assert measure(GroupsFirst(3, is_blocked=False), 3).leak > 0.01


class OnlyLoss(HandwrittenGroups):
    """A model that returns nothing but its loss in training."""

    def forward(self, images: Tensor) -> dict[str, Any]:
        outputs = super().forward(images)
        return {"loss": outputs["pred_logits"].square().mean()}


def test_a_model_that_returns_its_loss_is_measured_by_the_outputs_of_its_modules() -> None:
    assert measure(OnlyLoss(3), 3).holds
    assert not measure(OnlyLoss(3, is_blocked=False), 3).holds


def test_groups_of_the_page_about_your_own_detr_are_isolated() -> None:
    """A learned position embedding of 50 rows could be five groups, but no output has 50 rows."""
    model = StockDETR(3, 5 * N)
    assert measure(model, 5).leaking_module == (
        "transformer.decoder.layers.0.self_attn (MultiheadAttention)"
    )
    for layer in model.transformer.decoder.layers:
        layer.self_attn = MultiheadAttentionWithinGroups.convert(layer.self_attn, N)
    assert measure(model, 5, "queries").holds


def test_the_model_stays_as_it_is() -> None:
    model = HandwrittenGroups(3)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    measure(model, 3)
    assert model.training
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class Random(HandwrittenGroups):
    """Draws numbers that torch does not control."""

    calls = 0

    def forward(self, images: Tensor) -> dict[str, Any]:
        self.calls += 1
        outputs = super().forward(images)
        return {"boxes": outputs["pred_boxes"] + self.calls}


class GroupZeroRepeated(HandwrittenGroups):
    """Repeats the outputs of group 0 in evaluation, so those of the others ignore their queries."""

    def forward(self, images: Tensor) -> dict[str, Any]:
        boxes = super().forward(images)["pred_boxes"]
        return {"boxes": boxes if self.training else boxes.repeat(1, self.num_groups, 1)}


@pytest.mark.parametrize(
    ("model", "num_groups", "names", "message"),
    [
        (HandwrittenGroups(3), 1, (), "with 1 groups there is nothing to isolate"),
        (HandwrittenGroups(3).eval(), 3, (), r"measured in training mode, model.train\(\)"),
        (GroupZeroRepeated(3).eval(), 3, (), r"in evaluation mode.*model.train\(\)"),
        (HandwrittenGroups(3), 4, (), "no parameter and no input of the model has rows for 4"),
        (HandwrittenGroups(3), 3, ("querys",), "those with rows for 3 groups are: query_embed"),
        (HandwrittenGroups(4), 3, ("query_embed",), r"\[20, 16\] has not K\*N rows for K = 3"),
        (HandwrittenGroups(3), 3, ("backbone.0",), r"backbone.0.weight .* has not K\*N rows"),
        (Random(3), 3, (), "two passes with the same queries and the same random numbers"),
    ],
)
def test_a_model_that_cannot_be_measured_is_refused(
    model: nn.Module, num_groups: int, names: tuple[str, ...], message: str
) -> None:
    with pytest.raises(MeasurementError, match=message):
        measure(model, num_groups, *names)


def test_one_image_is_refused() -> None:
    with pytest.raises(MeasurementError, match="the 15 queries of two images or more"):
        isolation(HandwrittenGroups(3), num_groups=3, inputs=IMAGES[:1])


def test_inputs_need_a_module() -> None:
    with pytest.raises(ValueError, match=r"inputs are those of an nn\.Module"):
        isolation(lambda x: x, "queries", 3, inputs=IMAGES)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="a whole model is measured with inputs"):
        isolation(HandwrittenGroups(3), "query_embed", 3)  # type: ignore[call-overload]
