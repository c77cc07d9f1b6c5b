"""Pretrained weights of a backbone: from the Hugging Face hub, from a local file, or none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import timm
from torch import nn

from groupdetr.checkpoints import hub
from groupdetr.checkpoints.layout import Layout, refuse
from groupdetr.checkpoints.reading import Checkpoint, open_checkpoint
from groupdetr.checkpoints.wrappers import unwrap
from groupdetr.errors import WeightsError

# What a user does where the hub's weights cannot be had.
OTHER_WEIGHTS = (
    "pass a local file with --pretrained-backbone FILE (pretrained_backbone=FILE), or train from "
    'random weights with --pretrained-backbone none (pretrained_backbone="none")'
)


def create_network(
    name: str, pretrained: bool | str, layouts: tuple[Layout, ...], **options: Any
) -> nn.Module:
    """Return timm's network ``name``, created with timm's ``options``.

    ``pretrained`` is True for the weights of the hub, the path of a local file, or False for random
    weights. A file must have one of the ``layouts``. timm could read it, too, but it would ignore
    tensors that do not fit. `WeightsError` if the weights cannot be downloaded or do not fit.
    """
    if pretrained is True:
        with download_errors(name):
            return timm.create_model(name, pretrained=True, **options)
    network = timm.create_model(name, **options)
    if isinstance(pretrained, str):
        load_all_weights(network, read_backbone_file(pretrained, layouts))
    return network


@contextmanager
def download_errors(name: str) -> Iterator[None]:
    """Turn the errors of a download of timm's weights ``name`` into a `WeightsError`.

    If the hub cannot be reached, weights that are not in the cache are an error after a moment.
    """
    what = f"the weights of {name} could not be downloaded"
    config = timm.get_pretrained_cfg(name)
    model = hub.HubModel(config.hf_hub_id if config and config.hf_hub_id else f"timm/{name}")
    with hub.offline_if_unreachable() as reachable:
        try:
            yield
        except Exception as error:
            if not hub.is_hub_error(error):
                raise
            if not reachable:
                raise hub.missing(model, what, OTHER_WEIGHTS) from error
            raise WeightsError(
                f"{what}: {error}".splitlines()[0],
                f"{model} on the Hugging Face hub",
                f"try again later; or {OTHER_WEIGHTS}",
            ) from error


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
