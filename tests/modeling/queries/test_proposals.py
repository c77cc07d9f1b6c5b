"""Queries from the encoder: which tokens can be proposed, and what becomes of small images."""

from __future__ import annotations

import pytest
import torch

from groupdetr.detectors.tiny import TinyDABDeformableDETR, TinyDINO, TinyTwoStageDABDeformableDETR
from groupdetr.modeling.queries.proposals import GroupLinear, proposable
from groupdetr.structures.images import Images
from groupdetr.structures.memory import Memory
from groupdetr.structures.targets import Target

TWO_STAGE = [TinyDINO, TinyTwoStageDABDeformableDETR]


def memory(valid: tuple[int, int]) -> Memory:
    """One image on two levels, 6 x 8 and 3 x 4 tokens, of which ``valid`` (height, width) on the first are image."""
    paddings = []
    for shape, scale in (((6, 8), 1), ((3, 4), 2)):
        padding = torch.ones(shape, dtype=torch.bool)
        padding[: valid[0] // scale, : valid[1] // scale] = False
        paddings.append(padding.flatten())
    padding = torch.cat(paddings).unsqueeze(0)
    tokens = torch.randn(1, 60, 5)
    return Memory(tokens, torch.zeros_like(tokens), padding, ((6, 8), (3, 4)))


def test_a_token_proposes_a_box_at_its_centre_twice_as_large_on_each_coarser_level() -> None:
    here = memory((4, 4))
    tokens, anchors = proposable(here)
    boxes = anchors.sigmoid()
    assert torch.allclose(boxes[0, 0], torch.tensor([0.125, 0.125, 0.05, 0.05]))
    assert torch.allclose(boxes[0, 8 * 3 + 2], torch.tensor([0.625, 0.875, 0.05, 0.05]))
    assert torch.allclose(boxes[0, 48 + 1], torch.tensor([0.75, 0.25, 0.1, 0.1]))
    assert torch.equal(tokens[0, 0], here.tokens[0, 0])


def test_padding_proposes_nothing() -> None:
    here = memory((4, 4))
    tokens, anchors = proposable(here)
    assert (tokens[here.padding] == 0).all()
    assert anchors[here.padding].isinf().all()
    assert anchors[~here.padding].isfinite().all()


def test_boxes_near_the_border_are_not_proposed() -> None:
    """Of 200 tokens in a row the first has its centre at a four-hundredth."""
    tokens = torch.randn(1, 200, 3)
    row = Memory(tokens, tokens, torch.zeros(1, 200, dtype=torch.bool), ((1, 200),))
    _, anchors = proposable(row)
    outside = anchors.isinf().all(-1)[0]
    assert outside.nonzero().flatten().tolist() == [0, 1, 198, 199]


def test_groups_of_linear_layers_are_linear_layers() -> None:
    layers, x = GroupLinear(3, 5, 4), torch.randn(2, 1, 7, 5)
    for group in range(3):
        expected = torch.nn.functional.linear(x[:, 0], layers.weight[group], layers.bias[group])
        assert torch.allclose(layers(x, slice(None))[:, group], expected, atol=1e-6)
        assert torch.allclose(layers(x, slice(group, group + 1))[:, 0], expected, atol=1e-6)


@pytest.mark.parametrize("recipe", TWO_STAGE)
@pytest.mark.parametrize("mode", [True, False])
def test_an_image_of_fewer_tokens_than_queries_has_fewer_queries(
    recipe: type[TinyDINO], mode: bool
) -> None:
    """32 x 40 pixels are 4 x 5, 2 x 3 and 1 x 2 tokens."""
    model = recipe(num_classes=3, num_groups=2, num_queries=200).build().train(mode)
    images = Images.from_list([torch.randn(3, 32, 40)] * 2)
    targets = [
        Target(torch.tensor([1]), torch.tensor([[0.5, 0.5, 0.3, 0.3]])),
        Target(torch.zeros(0).long(), torch.zeros(0, 4)),
    ]
    outputs = model(images, targets)
    groups = 2 if mode else 1
    assert outputs.answer.logits.shape == (2, 28 * groups, 3)
    losses = model.recipe.criterion()(outputs, targets)
    assert all(loss.isfinite() for loss in losses.values())
    if mode:
        torch.stack([*losses.values()]).sum().backward()
        assert not [
            name for name, p in model.named_parameters() if p.requires_grad and p.grad is None
        ]


def test_groups_choose_for_themselves_each_by_its_own_head() -> None:
    torch.manual_seed(0)
    model = TinyDINO(num_classes=3, num_groups=3, num_queries=5).build().train()
    queries = model(Images.from_list([torch.randn(3, 96, 96)])).queries
    places = {tuple(map(tuple, queries.reference[0, k].tolist())) for k in range(3)}
    assert len(places) == 3


def test_where_to_look_does_not_teach_the_proposing_head_and_what_it_says_does() -> None:
    model = TinyDINO(num_classes=3, num_groups=2, num_queries=5).build().train()
    outputs = model(Images.from_list([torch.randn(3, 64, 64)]))
    assert not outputs.queries.reference.requires_grad
    assert outputs.stages()[0].names[0] == "proposals"
    head = model.queries.matching.heads.classify.weight
    assert torch.autograd.grad(
        outputs.layers[-1].logits.sum(), head, retain_graph=True, allow_unused=True
    ) == (None,)
    assert torch.autograd.grad(outputs.queries.proposals.logits.sum(), head)[0].abs().sum() > 0


def test_one_stage_proposes_nothing() -> None:
    model = TinyDABDeformableDETR(num_classes=3, num_queries=5).build().train()
    assert model(Images.from_list([torch.randn(3, 64, 64)])).queries.proposals is None
