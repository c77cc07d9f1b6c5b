"""What the hooks of one model share, so that they agree on the number of groups.

Hooks and replaced modules hold a `Grouping`. It is copied with the model by `copy.deepcopy`, so the
hooks of a copy follow the copy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from groupdetr.errors import UsageError

# The name of the parameters and modules of groups 1 to K-1 in a detector
OTHER_GROUPS = "other_groups"


@dataclass(eq=False)
class Grouping:
    """The groups of one model of transformers, and what has to be restored when they are removed.

    ``model`` is the detector itself, not a wrapper such as DistributedDataParallel.
    """

    model: nn.Module
    num_groups: int  # K, group 0 included
    num_queries: int  # N, of a group, without denoising queries
    group_chunk: int | None = None  # the groups whose decoder and loss run at a time; None is all
    handles: list[RemovableHandle] = field(default_factory=list)
    # Replaced query embeddings by the names of their places in the model
    originals: dict[str, Any] = field(default_factory=dict)
    # Modules whose copies are in the model's `other_groups`, by the names of the copies
    heads: dict[str, nn.Module] = field(default_factory=dict)

    # The queries of a group in the decoder, denoising queries included, if the decoder runs for
    # chunks of groups. It is that of the chunk that ran last.
    queries_in_chunk: int | None = None
    # The loss function that the user had set on the model, or None
    loss_function: Callable[..., Any] | None = None

    @property
    def active(self) -> bool:
        """Whether all K groups run: in training mode. In `eval` mode, group 0 runs alone."""
        return self.model.training

    def groups_in_decoder(self, num_queries: int) -> int:
        """Return the number of groups that a decoder layer is called with: K, or those of a chunk.

        ``num_queries`` are those of all groups. A chunk is known by their number alone, because
        gradient checkpointing of a layer computes the layer again after the decoder has returned.
        """
        if self.queries_in_chunk is None:
            return self.num_groups
        return num_queries // self.queries_in_chunk

    def parameters_of_group(self, group: int) -> list[tuple[nn.Parameter, int | None]]:
        """Return the parameters that only one group has.

        Beside each is its row [K-1,...] of the group, or None if all of it is the group's.
        """
        parameters: list[tuple[nn.Parameter, int | None]] = []
        for module in self.model.modules():
            tables = module._parameters
            if tables.get(OTHER_GROUPS) is not None:
                name = OTHER_GROUPS if group else "weight"
                table = tables[name]
                assert table is not None
                parameters.append((table, group - 1 if group else None))
        for name, head in self.heads.items():
            own = getattr(self.model, OTHER_GROUPS)[name][group - 1] if group else head
            parameters.extend((parameter, None) for parameter in own.parameters())
        return parameters

    def before(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        """Call ``hook(module, args, kwargs)`` before every forward pass of ``module``."""
        self.handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def after(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        """Call ``hook(module, args, kwargs, output)`` after every forward pass of ``module``."""
        self.handles.append(module.register_forward_hook(hook, with_kwargs=True))

    def require_named(self, output: Any) -> Any:
        """Return the output of a module of transformers. `UsageError` if it is a plain tuple."""
        if isinstance(output, tuple):
            raise UsageError(
                f"the groups of a {type(self.model).__name__} need named outputs",
                remedy="leave out return_dict=False in training",
            )
        return output

    def batch_to_queries(self, x: Tensor) -> Tensor:
        """[K*B,N,...] -> [B,K*N,...], where the first B rows of ``x`` are those of group 0."""
        return x.unflatten(0, (self.num_groups, -1)).transpose(0, 1).flatten(1, 2)

    def primary_group(self, x: Tensor) -> Tensor:
        """[K*B,...] -> [B,...] of group 0."""
        return x.unflatten(0, (self.num_groups, -1))[0]
