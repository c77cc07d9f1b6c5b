"""Groups for a detector of transformers, and the plain detector again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from groupdetr.errors import UsageError
from groupdetr.huggingface import own_groups
from groupdetr.huggingface.chunks import ChunkedDecoder
from groupdetr.huggingface.families import family_of, family_with_own_groups
from groupdetr.huggingface.grouping import OTHER_GROUPS, Grouping
from groupdetr.huggingface.loss import GroupedLoss
from groupdetr.huggingface.mask_head import GroupedMaskHead
from groupdetr.huggingface.mask_loss import GroupedCriterion
from groupdetr.huggingface.new_groups import NEW_GROUPS
from groupdetr.huggingface.self_attention import AttendWithinGroups

# The attribute of a detector that has its `Grouping`
GROUPING = "_groupdetr_grouping"
# What the loss function is stored as by the setter of `PreTrainedModel.loss_function`
LOSS_FUNCTION = "_loss_function"
# Arguments of `forward` with a row for every query
QUERY_ARGUMENTS = ("decoder_attention_mask", "decoder_inputs_embeds")


def with_groups(
    model: Any,
    num_groups: int = 11,
    group_chunk: int | None = None,
    new_groups: str = "perturbed",
    seed: int = 0,
) -> Any:
    """Let a detector of transformers train with K groups of queries, and return it.

    The detector is changed in place. In training mode it computes K groups in one pass, and its
    loss is the mean of the losses of the groups. In `eval` mode it answers exactly as before. Its
    outputs in training mode have the groups one after the other along the axis of the queries:
    logits [B,K*N,classes], where the first N are those of group 0.

    ``num_groups`` is K. The detector's own queries are group 0. ``new_groups`` says how the others
    begin: "perturbed", as copies of group 0 with noise of a tenth of each parameter's standard
    deviation; or "random", as transformers initialises a new model. ``seed`` is that of the noise
    or the initialisation.

    ``group_chunk`` saves memory: the decoder runs for so many groups at a time and is computed
    again in the backward pass, and the loss is computed for one group at a time. Loss and gradients
    stay the same. The terms in the output's ``loss_dict`` have no gradient then.

    `UsageError` if the class of the model, or its configuration, is not supported.

    >>> model = ghf.with_groups(detector, num_groups=11)
    >>> ghf.num_groups(model)
    11
    """
    if num_groups < 1:
        raise UsageError(
            f"a detector has at least one group, not {num_groups}",
            remedy="with_groups(model, num_groups=11)",
        )
    if group_chunk is not None and group_chunk < 1:
        raise UsageError(
            f"at least one group runs at a time, not {group_chunk}",
            remedy="with_groups(model, group_chunk=1)",
        )
    if new_groups not in NEW_GROUPS:
        raise UsageError(
            f"new_groups is {new_groups!r}", remedy=f"choose one of {', '.join(NEW_GROUPS)}"
        )
    detector = plain_detector(model)
    own_family = family_with_own_groups(detector)
    if own_family is not None:
        if group_chunk is not None:
            raise _refuse_chunks(own_family.name, "transformers computes its groups in one pass")
        own_base = detector.get_submodule(own_family.base)
        with _seeded(detector, seed):
            own_groups.set_num_groups(detector, own_base, num_groups, NEW_GROUPS[new_groups])
        return model
    if hasattr(detector, GROUPING):
        raise UsageError(
            f"the model already has {grouping_of(detector).num_groups} groups",
            remedy="call without_groups(model) first",
        )
    family = family_of(detector)
    family.require(detector.config)
    if group_chunk is not None and (family.criterion or family.mask_head):
        reason = "it computes the masks of all queries outside its decoder"
        raise _refuse_chunks(family.name, reason)

    base: Any = detector.get_submodule(family.base)
    queries = family.queries(detector.config)
    grouping = Grouping(detector, num_groups, queries.num_queries(base), group_chunk)
    # What may be refused comes first, so that a refused model is not changed.
    loss = None if family.criterion else GroupedLoss(detector.loss_function, grouping)
    setattr(detector, GROUPING, grouping)

    # Queries: K groups of them, concatenated along their axis
    with _seeded(detector, seed):
        queries.attach(grouping, base, NEW_GROUPS[new_groups])

    # Decoder: self-attention within the groups, and chunks of groups
    separation = AttendWithinGroups(grouping, family.query_axis)
    for layer in base.get_submodule(family.decoder_layers):
        separation.attach(layer.get_submodule(family.self_attention))
    if group_chunk is not None and group_chunk < num_groups:
        decoder = base.decoder
        decoder.forward = ChunkedDecoder(
            decoder.forward, grouping, group_chunk, family.decoder_axes
        )

    # Loss: the mean over the groups
    grouping.before(detector, _RefuseWhatCannotWork(grouping))
    if family.mask_head:
        GroupedMaskHead(grouping).attach(detector.get_submodule(family.mask_head))
    if loss is None:
        GroupedCriterion(grouping).attach(detector.get_submodule(family.criterion))
    else:
        grouping.loss_function = detector.__dict__.get(LOSS_FUNCTION)
        detector.loss_function = loss
    return model


@torch.no_grad()
def without_groups(model: Any, group: int = 0) -> Any:
    """Make a detector with groups the plain detector of transformers again, and return it.

    The detector is changed in place. It keeps the trained weights of one ``group``, by default
    those that answer in `eval` mode. All groups are trained alike, so any of them may be kept. The
    hooks are removed, and the state dict has exactly the names that it had before `with_groups`.

    `UsageError` if the model has no groups, or not this one.

    >>> ghf.without_groups(model).save_pretrained("mine")
    """
    detector = plain_detector(model)
    own_family = family_with_own_groups(detector)
    if own_family is None:
        grouping_of(detector)  # raises if there are no groups
    if not 0 <= group < num_groups(detector):
        raise UsageError(
            f"there is no group {group}",
            remedy=f"choose one of 0 to {num_groups(detector) - 1}",
        )
    if own_family is not None:
        base = detector.get_submodule(own_family.base)
        own_groups.make_primary(base, group)
        own_groups.set_num_groups(detector, base, 1)
        return model
    grouping = grouping_of(detector)
    base = detector.get_submodule(family_of(detector).base)
    for name, original in grouping.originals.items():
        grouped = getattr(base, name)
        # torch may have replaced the parameter object, for example while the model was moved.
        original.weight = grouped.primary_group
        if group > 0:
            original.weight.copy_(grouped.other_groups[group - 1])
        original.train(grouped.training)
        setattr(base, name, original)
    if grouping.heads:
        others = getattr(detector, OTHER_GROUPS)
        for name, head in grouping.heads.items():
            if group > 0:
                head.load_state_dict(others[name][group - 1].state_dict())
        delattr(detector, OTHER_GROUPS)
    if isinstance(base.decoder.forward, ChunkedDecoder):
        del base.decoder.forward  # of the instance; the one of the class is there again
    for handle in grouping.handles:
        handle.remove()
    if LOSS_FUNCTION in detector.__dict__:
        delattr(detector, LOSS_FUNCTION)
    if grouping.loss_function is not None:
        detector.loss_function = grouping.loss_function
    delattr(detector, GROUPING)
    return model


def num_groups(model: Any) -> int:
    """Return the number of groups K that a model trains with: 1 for a model without groups.

    >>> ghf.num_groups(detector)
    1
    """
    detector = plain_detector(model)
    if family_with_own_groups(detector) is not None:
        return int(detector.config.group_detr)
    grouping = getattr(detector, GROUPING, None)
    return 1 if grouping is None else grouping.num_groups


def grouping_of(detector: Any) -> Grouping:
    """Return the `Grouping` of a detector. `UsageError` if it has no groups."""
    grouping = getattr(detector, GROUPING, None)
    if not isinstance(grouping, Grouping):
        raise UsageError(
            f"this {type(detector).__name__} has no groups",
            remedy="call with_groups(model) first",
        )
    return grouping


def plain_detector(model: Any) -> Any:
    """Return the detector that peft's adapters were added to, or the model itself.

    `UsageError` for a model that is wrapped or compiled already, because the wrapper would not know
    the new parameters.
    """
    wrappers = {
        "DistributedDataParallel": "module",
        "DataParallel": "module",
        "OptimizedModule": "_orig_mod",
    }
    name = type(model).__name__
    if name in wrappers:
        attribute = wrappers[name]
        raise UsageError(
            f"the model is in a {name}",
            remedy=f"pass model.{attribute}, before the optimizer is built, and wrap the result",
        )
    # peft's models delegate unknown attributes, so the method alone would not tell them apart.
    if hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
        return model.get_base_model()
    return model


@contextmanager
def _seeded(detector: Any, seed: int) -> Iterator[None]:
    """Use the random numbers of a seed, and continue with the old ones afterwards."""
    cuda_devices = {p.device for p in detector.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=[*cuda_devices]):
        torch.manual_seed(seed)
        yield


def _refuse_chunks(name: str, reason: str) -> UsageError:
    """Return the error for a family whose groups cannot be computed in chunks."""
    return UsageError(
        f"{name} cannot be trained in chunks of groups: {reason}",
        remedy="leave out group_chunk; model.gradient_checkpointing_enable() saves memory, too",
    )


class _RefuseWhatCannotWork:
    """Refuse DataParallel, and queries that are passed to `forward`, in training mode."""

    def __init__(self, grouping: Grouping) -> None:
        self.grouping = grouping

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self.grouping.active:
            return
        if getattr(module, "_is_replica", False):  # torch.nn.parallel.replicate sets it
            raise UsageError(
                "a detector with groups cannot be trained in a DataParallel, in which its replicas "
                "share their hooks",
                remedy="start one process for each GPU: torchrun or accelerate launch",
            )
        for name in QUERY_ARGUMENTS:
            if kwargs.get(name) is not None:
                raise UsageError(
                    f"{name} has a row for every query, but there are K groups of queries",
                    remedy="leave it out in training, or call without_groups(model)",
                )
