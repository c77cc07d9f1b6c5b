"""Networks of timm with pretrained weights, from the Hugging Face hub or from a local file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import timm
from timm.models import clean_state_dict
from torch import nn
from torch.nn.modules.module import _IncompatibleKeys

from groupdetr.checkpoints import hub
from groupdetr.checkpoints.layout import Layout, refuse
from groupdetr.checkpoints.reading import open_checkpoint
from groupdetr.errors import WeightsError
from groupdetr.modeling.backbones.pretrained import (
    OTHER_WEIGHTS,
    load_all_weights,
    read_backbone_file,
)
from groupdetr.modeling.backbones.timm_network import TimmModel


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


def create_timm_network(
    name: str, pretrained: bool | str, options: dict[str, Any], used: frozenset[str]
) -> TimmModel:
    """Return timm's network ``name``, created with timm's ``options``.

    ``pretrained`` is True for the weights of the hub, the path of a local file, or False for random
    weights. The file has the names of timm's classifier, or those of any publication that timm
    itself converts; its classes may be others. `WeightsError` if the weights cannot be downloaded,
    or if one of the parameters ``used`` or its batch norm's statistics is not among them.
    """
    if pretrained is False:
        return timm.create_model(name, **options)
    with _recorded_loading() as results:
        if pretrained is True:
            where = f"timm/{name} on the Hugging Face hub"
            network = _download(name, options)
        else:
            where = pretrained
            network = _read(name, options, pretrained)
            if not results:
                raise WeightsError(
                    f"timm reads the weights of {name} in its own way, and not from such a file",
                    where,
                    "download them: leave out --pretrained-backbone FILE",
                )
    for result in results:
        # A batch norm's statistics are used if its weights are.
        used_modules = {parameter.rpartition(".")[0] for parameter in used}
        statistics = [
            key
            for key in result.missing_keys
            if key.endswith((".running_mean", ".running_var"))
            and key.rpartition(".")[0] in used_modules
        ]
        missing = [key for key in result.missing_keys if key in used] + statistics
        refuse(missing, "the file has no", where)
        if pretrained is not True:
            refuse(_of_used_parts(result.unexpected_keys, used), "the backbone has no", where)
    return network


def _of_used_parts(names: Iterable[str], used: frozenset[str]) -> list[str]:
    """Return those of the ``names`` that belong to parts of the network of which some are used.

    A classifier, the decoder of a masked autoencoder and the like are not among them.
    """
    used_parts = {parameter.partition(".")[0] for parameter in used}
    return [name for name in names if name.partition(".")[0] in used_parts]


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


def _download(name: str, options: dict[str, Any]) -> TimmModel:
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise WeightsError(
            f"timm has no pretrained weights of {name}",
            "the Hugging Face hub",
            f"choose one of the names that timm.list_pretrained() returns, {OTHER_WEIGHTS}",
        )
    with download_errors(name):
        return timm.create_model(name, pretrained=True, **options)


def _read(name: str, options: dict[str, Any], path: str) -> TimmModel:
    """Return the network with the weights of a local file, whose names timm converts."""
    file = open_checkpoint(path)
    overlay = {"state_dict": clean_state_dict(file.state)}
    try:
        network: TimmModel = timm.create_model(
            name, True, pretrained_cfg_overlay=overlay, **options
        )
    except Exception as error:  # timm's conversion of another network's file can fail in any way
        lines = [line.strip() for line in str(error).splitlines()]
        reason = lines[1] if len(lines) > 1 else f"{type(error).__name__} {error}"
        raise WeightsError(
            f"these are not weights of {name}: {reason}",
            file.where,
            "pass a file of this backbone, saved by timm or by its authors",
        ) from error
    # timm keeps the whole file in memory otherwise.
    network.pretrained_cfg.pop("state_dict")
    return network


@contextmanager
def _recorded_loading() -> Iterator[list[_IncompatibleKeys]]:
    """Collect what every call of ``load_state_dict`` returns, and let all of them be lenient.

    timm converts the names of a file and loads the tensors in one function. It does not return the
    names that do not match, and logs them at most.
    """
    results: list[_IncompatibleKeys] = []
    original = nn.Module.load_state_dict

    def load_state_dict(
        module: nn.Module, state_dict: Any, strict: bool = True, assign: bool = False
    ) -> _IncompatibleKeys:
        results.append(original(module, state_dict, strict=False, assign=assign))
        return _IncompatibleKeys([], [])  # so timm logs nothing

    nn.Module.load_state_dict = load_state_dict  # type: ignore[method-assign,assignment]
    try:
        yield results
    finally:
        nn.Module.load_state_dict = original  # type: ignore[method-assign]
