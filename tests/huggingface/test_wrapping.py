"""What `with_groups` adds to a model, what `without_groups` removes, and what is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import groupdetr.huggingface as ghf
from groupdetr.errors import UsageError
from groupdetr.huggingface.families import REASONS
from tests.huggingface.detectors import (
    CHANNELS,
    DETECTORS,
    NUM_QUERIES,
    batch,
    dab_detr,
    rt_detr,
)


def hooks(model: nn.Module) -> int:
    """The number of forward hooks in a model."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("name", ["DETR", "RT-DETR", "Mask2Former", "Deformable DETR, two stages"])
def test_without_groups_leaves_the_original_modules_and_no_hooks(name: str) -> None:
    model = DETECTORS[name]()
    modules = dict(model.named_modules())
    attributes = model.__dict__.keys()
    chunk = None if name == "Mask2Former" else 1
    ghf.with_groups(model, 3, group_chunk=chunk)
    assert hooks(model) > 0
    ghf.without_groups(model)
    assert hooks(model) == 0
    assert model.__dict__.keys() == attributes
    restored = dict(model.named_modules())
    assert restored.keys() == modules.keys()
    assert all(restored[path] is module for path, module in modules.items())


def test_a_loss_function_of_the_user_is_averaged_and_restored() -> None:
    def loss_function(
        logits: Tensor,
        labels: Any,
        device: Any,
        pred_boxes: Tensor,
        config: Any,
        outputs_class: Tensor,
        outputs_coord: Tensor,
    ) -> Any:
        assert pred_boxes.shape[:2] == logits.shape[:2] == (2, NUM_QUERIES)
        assert outputs_coord.shape[:3] == outputs_class.shape[:3] == (2, 2, NUM_QUERIES)
        return logits.square().sum(), {}, None

    model = DETECTORS["DETR"]()
    model.loss_function = loss_function
    ghf.with_groups(model, 3).train()
    output = model(**batch(model))
    torch.testing.assert_close(output.loss, output.logits.square().sum() / 3)
    assert ghf.without_groups(model).loss_function is loss_function


def test_a_loss_function_without_names_is_refused() -> None:
    model = DETECTORS["DETR"]()
    model.loss_function = lambda *arguments: arguments
    with pytest.raises(UsageError, match="must name its arguments"):
        ghf.with_groups(model, 3)
    assert hooks(model) == 0
    assert ghf.num_groups(model) == 1


def other_groups(**options: Any) -> Tensor:
    """The tables of groups 1 and 2 of one and the same detector: [2,N,C]."""
    torch.manual_seed(0)
    model = ghf.with_groups(DETECTORS["DETR"](), 3, **options)
    return model.model.query_position_embeddings.other_groups.detach()


def test_new_groups_are_copies_of_group_0_with_a_tenth_of_its_deviation() -> None:
    torch.manual_seed(0)
    table = DETECTORS["DETR"]().model.query_position_embeddings.weight.detach()
    noise = other_groups() - table
    assert noise.shape == (2, NUM_QUERIES, CHANNELS)
    assert 0.08 < noise.std() / table.std() < 0.12
    assert not torch.equal(noise[0], noise[1])


def test_the_seed_decides_the_new_groups_and_nothing_else() -> None:
    assert torch.equal(other_groups(seed=1), other_groups(seed=1))
    assert not torch.equal(other_groups(seed=1), other_groups(seed=2))
    torch.manual_seed(5)
    expected = torch.rand(3)
    model = DETECTORS["DETR"]()
    torch.manual_seed(5)
    ghf.with_groups(model, 3)
    assert torch.equal(torch.rand(3), expected)


def test_random_groups_are_initialised_as_transformers_does() -> None:
    """The bias of the classes has the prior of focal loss, and group 0 is not changed."""
    model = rt_detr()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)  # a trained model, whose weights are not those of a new one
    before = copy.deepcopy(model.state_dict())
    ghf.with_groups(model, 3, new_groups="random")
    fresh = rt_detr().model.enc_score_head
    first, second = model.other_groups["enc_score_head"]
    assert torch.equal(first.bias, fresh.bias)
    assert first.weight.abs().max() <= (6 / (CHANNELS + len(first.bias))) ** 0.5  # Xavier
    assert not torch.equal(first.weight, second.weight)
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_one_group_uses_all_of_its_parameters() -> None:
    """With K = 1 the other groups are an empty table. DistributedDataParallel needs it used."""
    model = ghf.with_groups(DETECTORS["DETR"](), num_groups=1).train()
    queries = model.model.query_position_embeddings
    queries.weight.sum().backward()
    assert queries.other_groups.shape[0] == 0
    assert queries.other_groups.grad is not None


def test_any_group_can_be_the_one_that_is_kept() -> None:
    model = ghf.with_groups(DETECTORS["DETR"](), 3)
    table = model.model.query_position_embeddings.other_groups[1].detach().clone()
    ghf.without_groups(model, group=2)
    assert torch.equal(model.model.query_position_embeddings.weight, table)


def test_unknown_models_are_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"^a Linear cannot be trained") as refused:
        ghf.with_groups(nn.Linear(2, 2))
    assert "ConditionalDetrForObjectDetection" in refused.value.where

    # A class of the same name in another library is not the one of transformers.
    stranger = type("DetrForObjectDetection", (nn.Module,), {})()
    with pytest.raises(UsageError, match=r"^a DetrForObjectDetection cannot"):
        ghf.with_groups(stranger)


@pytest.mark.parametrize("name", REASONS)
def test_models_with_queries_that_are_not_supported_are_refused_with_the_reason(name: str) -> None:
    import transformers

    # The reason depends on the class alone, so no weights are needed.
    model = object.__new__(getattr(transformers, name))
    with pytest.raises(UsageError) as refused:
        ghf.with_groups(model)
    assert refused.value.what == f"a {name} cannot be trained with groups: {REASONS[name]}"


def test_what_cannot_work_is_refused() -> None:
    model = DETECTORS["DETR"]()
    with pytest.raises(UsageError, match="at least one group, not 0"):
        ghf.with_groups(model, 0)
    with pytest.raises(UsageError, match="new_groups is 'copied'"):
        ghf.with_groups(model, 3, new_groups="copied")
    with pytest.raises(UsageError, match="not 0"):
        ghf.with_groups(model, 3, group_chunk=0)
    with pytest.raises(UsageError, match="has no groups"):
        ghf.without_groups(model)
    with pytest.raises(UsageError, match="in a DataParallel"):
        ghf.with_groups(nn.DataParallel(model))
    assert hooks(model) == 0

    ghf.with_groups(model, 3)
    with pytest.raises(UsageError, match="already has 3 groups"):
        ghf.with_groups(model, 3)
    with pytest.raises(UsageError, match="there is no group 3"):
        ghf.without_groups(model, group=3)
    model.train()._is_replica = True
    with pytest.raises(UsageError, match="cannot be trained in a DataParallel"):
        model(**batch(model))
    del model._is_replica
    queries = torch.zeros(2, NUM_QUERIES, CHANNELS)
    with pytest.raises(UsageError, match="decoder_inputs_embeds has a row for every query"):
        model.train()(**batch(model), decoder_inputs_embeds=queries)


def test_configurations_that_cannot_have_groups_are_refused() -> None:
    model = dab_detr()
    model.config.num_patterns = 3
    with pytest.raises(UsageError, match="num_patterns is 3"):
        ghf.with_groups(model)
    proposals = rt_detr()
    proposals.config.learn_initial_query = True
    with pytest.raises(UsageError, match="learn_initial_query=True fail in transformers itself"):
        ghf.with_groups(proposals)
