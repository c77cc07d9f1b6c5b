"""Pretrained weights of a backbone from a local file."""

from __future__ import annotations

from torch import nn

from groupdetr.checkpoints.checkpoint import Checkpoint
from groupdetr.checkpoints.layout import Layout, refuse
from groupdetr.checkpoints.reading import open_checkpoint
from groupdetr.checkpoints.wrappers import unwrap
from groupdetr.errors import WeightsError

# What a user does where the hub's weights cannot be had.
OTHER_WEIGHTS = (
    "pass a local file with --pretrained-backbone FILE (pretrained_backbone=FILE), or train from "
    'random weights with --pretrained-backbone none (pretrained_backbone="none")'
)


def read_backbone_file(path: str, layouts: tuple[Layout, ...]) -> Checkpoint:
    """Read a file that has one of the ``layouts``, and convert it to our names."""
    file = unwrap(open_checkpoint(path), layouts)
    for layout in layouts:
        if layout.fits(file.state):
            return layout.convert(file)
    titles = " or ".join(layout.title for layout in layouts)
    raise WeightsError(
        f"these are not the weights of {titles}", path, "pass a file of the model's own backbone"
    )


def load_all_weights(network: nn.Module, file: Checkpoint) -> None:
    """Load all tensors of the file into all weights of the network.

    Tensors that are not floating point, such as the counters of batch norms, are not loaded.
    `WeightsError` if names or shapes differ.
    """
    state = network.state_dict()
    ours = {name: value for name, value in state.items() if value.is_floating_point()}
    refuse(file.state.keys() - ours.keys(), "the backbone has no", file.where)
    refuse(ours.keys() - file.state.keys(), "the file has no", file.where)
    unequal_shapes = [name for name in ours if ours[name].shape != file.state[name].shape]
    refuse(unequal_shapes, "of another shape:", file.where)
    network.load_state_dict(file.state, strict=False)
