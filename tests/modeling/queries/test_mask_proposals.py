"""The proposals of RF-DETR-Seg share the mask embedding of the decoder's head."""

from __future__ import annotations

from copy import deepcopy

import torch

from groupdetr.detectors.tiny import MicroRFDETRSeg
from groupdetr.structures.images import Images
from groupdetr.structures.memory import LayerPixelMemory

RECIPE = MicroRFDETRSeg(num_classes=3, num_groups=2, num_queries=4)


def test_the_shared_parameters_have_one_name() -> None:
    model = RECIPE.build()
    names = [name for name, _ in model.named_parameters() if "mask_embed" in name]
    assert names
    assert all(name.startswith("decoder.heads.0.mask_embed.") for name in names)
    assert not any("mask_embed" in name for name in model.queries.state_dict())


def test_a_copy_of_the_model_shares_its_own_embedding() -> None:
    model = RECIPE.build().eval()
    copied = deepcopy(model)
    with torch.no_grad():
        model.decoder.heads[0].mask_embed.bias.fill_(5.0)
        copied.decoder.heads[0].mask_embed.bias.fill_(7.0)
        images = Images.from_list([torch.randn(3, 64, 64)])
        ours = model(images).queries.proposals.embeddings_of_masks
        of_copy = copied(images).queries.proposals.embeddings_of_masks
    assert torch.allclose(of_copy[..., -1] - ours[..., -1], torch.tensor(2.0), atol=1e-5)


def test_proposals_and_every_layer_have_mask_features_of_their_own() -> None:
    model = RECIPE.build().eval()
    images = Images.from_list([torch.randn(3, 64, 64)])
    with torch.no_grad():
        memory = model.encoder(model.backbone(images.pixels, images.padding), images)
        outputs = model(images)
    assert isinstance(memory, LayerPixelMemory)
    expected = [memory.mask_features, *memory.layer_mask_features]
    predictions = [outputs.queries.proposals, *outputs.layers]
    for features, prediction in zip(expected, predictions, strict=True):
        assert torch.equal(prediction.mask_features.pixels, features.pixels)
    first, *others = expected
    assert all((first.pixels - other.pixels).abs().max() > 1e-3 for other in others)
