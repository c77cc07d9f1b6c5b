"""Two-stage query selection: which tokens are valid proposals, and what happens in small images."""

from __future__ import annotations

import pytest
import torch

from groupdetr.detectors.tiny import TinyDINO, TinyTwoStageDABDeformableDETR
from groupdetr.modeling.queries.proposals import encoder_proposals
from groupdetr.structures.images import Images
from groupdetr.structures.memory import Memory
from groupdetr.structures.targets import Target

TWO_STAGE = [TinyDINO, TinyTwoStageDABDeformableDETR]


def random_memory(valid_size: tuple[int, int]) -> Memory:
    """One image on two levels of 6 x 8 and 3 x 4 tokens.

    ``valid_size`` is the height and width of the image without padding, in tokens of the first
    level.
    """
    valid_height, valid_width = valid_size
    paddings = []
    for shape, scale in (((6, 8), 1), ((3, 4), 2)):
        padding = torch.ones(shape, dtype=torch.bool)
        padding[: valid_height // scale, : valid_width // scale] = False
        paddings.append(padding.flatten())
    tokens = torch.randn(1, 60, 5)
    return Memory.from_tokens(
        tokens=tokens,
        position=torch.zeros_like(tokens),
        padding=torch.cat(paddings).unsqueeze(0),
        shapes=((6, 8), (3, 4)),
    )


def test_anchors_are_centred_on_tokens_and_twice_as_large_on_each_coarser_level() -> None:
    memory = random_memory((4, 4))
    tokens, anchors = encoder_proposals(memory)
    boxes = anchors.sigmoid()
    assert torch.allclose(boxes[0, 0], torch.tensor([0.125, 0.125, 0.05, 0.05]))
    assert torch.allclose(boxes[0, 8 * 3 + 2], torch.tensor([0.625, 0.875, 0.05, 0.05]))
    assert torch.allclose(boxes[0, 48 + 1], torch.tensor([0.75, 0.25, 0.1, 0.1]))
    assert torch.equal(tokens[0, 0], memory.tokens[0, 0])


def test_tokens_in_the_padding_are_no_proposals() -> None:
    memory = random_memory((4, 4))
    tokens, anchors = encoder_proposals(memory)
    assert (tokens[memory.padding] == 0).all()
    assert anchors[memory.padding].isinf().all()
    assert anchors[~memory.padding].isfinite().all()


def test_boxes_near_the_border_are_no_proposals() -> None:
    """Of 200 tokens in a row, the first has its centre at 1/400."""
    tokens = torch.randn(1, 200, 3)
    memory = Memory.from_tokens(
        tokens=tokens,
        position=tokens,
        padding=torch.zeros(1, 200, dtype=torch.bool),
        shapes=((1, 200),),
    )
    _, anchors = encoder_proposals(memory)
    invalid = anchors.isinf().all(-1)[0]
    assert invalid.nonzero().flatten().tolist() == [0, 1, 198, 199]


@pytest.mark.parametrize("recipe", TWO_STAGE)
@pytest.mark.parametrize("training", [True, False])
def test_an_image_with_fewer_tokens_than_queries_has_fewer_queries(
    recipe: type[TinyDINO], training: bool
) -> None:
    """32 x 40 pixels are 4 x 5, 2 x 3 and 1 x 2 tokens."""
    model = recipe(num_classes=3, num_groups=2, num_queries=200).build().train(training)
    images = Images.from_list([torch.randn(3, 32, 40)] * 2)
    targets = [
        Target(torch.tensor([1]), torch.tensor([[0.5, 0.5, 0.3, 0.3]])),
        Target(torch.zeros(0).long(), torch.zeros(0, 4)),
    ]
    outputs = model(images, targets)
    groups = 2 if training else 1
    assert outputs.final.logits.shape == (2, 28 * groups, 3)
    losses = model.recipe.criterion()(outputs, targets)
    assert all(loss.isfinite() for loss in losses.values())
    if training:
        torch.stack([*losses.values()]).sum().backward()
        for name, parameter in model.named_parameters():
            assert not parameter.requires_grad or parameter.grad is not None, name


def test_the_proposal_heads_are_trained_by_proposal_losses_only() -> None:
    model = TinyDINO(num_classes=3, num_groups=2, num_queries=5).build().train()
    outputs = model(Images.from_list([torch.randn(3, 64, 64)]))
    assert not outputs.queries.reference.requires_grad
    assert outputs.supervised()[0].names[0] == "proposals"
    weight = model.queries.matching.heads.classify.weight
    decoder_loss = outputs.layers[-1].logits.sum()
    (gradient,) = torch.autograd.grad(decoder_loss, weight, retain_graph=True, allow_unused=True)
    assert gradient is None
    (gradient,) = torch.autograd.grad(outputs.queries.proposals.logits.sum(), weight)
    assert gradient.abs().sum() > 0
