"""The mean of a family's own loss over the groups (Eq. 7 of the paper).

The loss function of transformers is called once for every group, with the predictions of that group
alone. So the matching, the denoising, the auxiliary losses and the normaliser of every family are
those of a detector without groups, and the costs of a group are not computed for the objects of
another one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from groupdetr.errors import UsageError
from groupdetr.huggingface.grouping import Grouping
from groupdetr.modeling.group_chunks import GradientBoundary

# The axis of the groups in the arguments of the loss functions of transformers. It is that of the
# queries, but for masks, whose groups are stacked along their height (`mask_head`).
GROUP_AXIS = {
    "logits": 1,
    "pred_boxes": 1,
    "pred_masks": 2,
    "outputs_class": 2,
    "outputs_coord": 2,
    "enc_topk_logits": 1,
    "enc_topk_bboxes": 1,
    "predicted_corners": 2,
    "initial_reference_points": 2,
}


class GroupedLoss:
    """The loss function of a model with groups: the mean of the losses of the groups.

    It returns what the loss function of transformers returns: the loss, its terms by name, and the
    auxiliary outputs, in which the groups are concatenated along the axis of the queries.
    """

    def __init__(self, loss_function: Callable[..., Any], grouping: Grouping) -> None:
        self.loss_function = loss_function
        self.signature = inspect.signature(loss_function)
        self.grouping = grouping
        # The name of what the function takes as **kwargs, and whether it takes *args
        self.more_arguments = ""
        for name, parameter in self.signature.parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                self.more_arguments = name
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY):
                raise UsageError(
                    "a loss function of a detector with groups must name its arguments",
                    where=f"{loss_function}: {parameter}",
                    remedy="name them as transformers does: logits, labels, device, pred_boxes, "
                    "config, outputs_class, outputs_coord",
                )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the loss function of transformers with its own arguments."""
        if not self.grouping.active:
            return self.loss_function(*args, **kwargs)
        bound = self.signature.bind(*args, **kwargs)
        arguments = bound.arguments
        more = arguments.pop(self.more_arguments, {})
        named = {**arguments, **more}
        if self.grouping.group_chunk is not None and torch.is_grad_enabled():
            return self._one_by_one(named)
        results = []
        for group in split_arguments(named, self.grouping.num_groups):
            results.append(self.loss_function(**group))
        losses, terms, auxiliary_outputs = zip(*results)
        return mean(losses), mean_terms(terms), join_auxiliary_outputs(auxiliary_outputs)

    def _one_by_one(self, arguments: dict[str, Any]) -> Any:
        """Compute the same, and the gradients of the predictions at once, for group after group.

        So only one group's loss is in memory. The terms and auxiliary outputs have no gradient.
        """
        num_groups = self.grouping.num_groups
        boundary = GradientBoundary()
        for name, value in arguments.items():
            if name in GROUP_AXIS and isinstance(value, Tensor):
                # These gradients are computed before a gradient scaler multiplies the loss. Many of
                # them would be zero in float16.
                in_float32 = value.float() if value.dtype == torch.float16 else value
                arguments[name] = boundary.detach(in_float32)
        losses, terms, auxiliary_outputs = [], [], []
        for group in split_arguments(arguments, num_groups):
            loss, terms_of_group, auxiliary = self.loss_function(**group)
            with torch.autocast(loss.device.type, enabled=False):
                (loss / num_groups).backward()
            losses.append(loss.detach())
            terms.append({name: _detached(term) for name, term in terms_of_group.items()})
            auxiliary_outputs.append(_detached(auxiliary))
        joined = join_auxiliary_outputs(auxiliary_outputs)
        return boundary.rejoin(mean(losses)), mean_terms(terms), joined


def _detached(value: Any) -> Any:
    """Return tensors, in any lists and dicts, without their gradients."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, dict):
        return {name: _detached(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_detached(entry) for entry in value]
    return value


def split_arguments(arguments: Mapping[str, Any], num_groups: int) -> list[dict[str, Any]]:
    """Return the arguments of a loss function for every group: [K]."""
    groups: list[dict[str, Any]] = [{} for _ in range(num_groups)]
    for name, value in arguments.items():
        if name in GROUP_AXIS and isinstance(value, Tensor):
            values: Sequence[Any] = value.chunk(num_groups, GROUP_AXIS[name])
        elif name == "denoising_meta_values" and value is not None:
            values = split_denoising(value, num_groups)
        elif isinstance(value, Tensor) and value.dim() > 1:
            raise UsageError(
                f"the loss function takes a tensor {name!r}, whose axis of queries is not known",
                remedy=f"the known ones are {', '.join(GROUP_AXIS)}; if the loss function is that "
                "of transformers, use an earlier version, and report this",
            )
        else:
            values = [value] * num_groups
        for group, part in zip(groups, values, strict=True):
            group[name] = part
    return groups


def split_denoising(values: Mapping[str, Any], num_groups: int) -> list[dict[str, Any]]:
    """Return the values about the denoising queries of every group.

    ``dn_positive_idx`` has an entry for each image of each group, K*B in total.
    """
    positive = values["dn_positive_idx"]
    num_images = len(positive) // num_groups
    groups = []
    for k in range(num_groups):
        of_group = positive[k * num_images : (k + 1) * num_images]
        groups.append({**values, "dn_positive_idx": of_group})
    return groups


def mean(values: Sequence[Any]) -> Any:
    """Return the mean of tensors or numbers."""
    return sum(values) / len(values)


def mean_terms(terms: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the mean of every term over the groups."""
    return {name: mean([group[name] for group in terms]) for name in terms[0]}


def join_auxiliary_outputs(groups: Sequence[Any]) -> Any:
    """Concatenate the auxiliary outputs of the groups: a list of dicts of tensors [B,N,...]."""
    if groups[0] is None:
        return None
    joined = []
    for layer in zip(*groups):
        tensors = {}
        for name in layer[0]:
            values = [group[name] for group in layer]
            tensors[name] = None if values[0] is None else torch.cat(values, dim=1)
        joined.append(tensors)
    return joined
