"""A timm network with its weights: from the hub, from a local file, or random."""

from __future__ import annotations

from typing import Any

import timm
from torch import nn

from groupdetr.checkpoints.layout import Layout, refuse
from groupdetr.checkpoints.reading import Checkpoint, open_checkpoint
from groupdetr.errors import WeightsError


def create(
    name: str, pretrained: bool | str, layouts: tuple[Layout, ...], **options: Any
) -> nn.Module:
    """The network ``name`` of timm, its weights from the hub (True), a file (a path) or random (False).

    ``layouts``: those that the file may have. timm would read it too, but leave out what does not fit.
    """
    try:
        network = timm.create_model(name, pretrained=pretrained is True, **options)
    except OSError as error:  # what hub and http failures derive from
        raise WeightsError(
            f"the weights of {name} could not be fetched: {error}".splitlines()[0],
            f"timm/{name} on the Hugging Face hub",
            "go online once, pass a local file with --pretrained-backbone FILE (pretrained_backbone=FILE), or none",
        ) from error
    if isinstance(pretrained, str):
        fill(network, read(pretrained, layouts))
    return network


def read(path: str, layouts: tuple[Layout, ...]) -> Checkpoint:
    """A file of one of the ``layouts``, under our names."""
    file = open_checkpoint(path)
    for layout in layouts:
        if layout.fits(file.state):
            return layout.convert(file)
    known = " or ".join(layout.title for layout in layouts)
    raise WeightsError(
        f"these are not the weights of {known}",
        path,
        "pass a file of the backbone that the model has",
    )


def fill(network: nn.Module, file: Checkpoint) -> None:
    """All weights of the file into all of the network; counters of batch norms and the like are left alone."""
    ours = {
        name: value for name, value in network.state_dict().items() if value.is_floating_point()
    }
    refuse(file.state.keys() - ours.keys(), "the backbone has no", file.where)
    refuse(ours.keys() - file.state.keys(), "the file has no", file.where)
    refuse(
        (n for n in ours if ours[n].shape != file.state[n].shape), "of another shape:", file.where
    )
    network.load_state_dict(file.state, strict=False)
