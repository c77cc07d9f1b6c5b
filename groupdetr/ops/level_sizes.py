"""The sizes of the levels of a feature pyramid, as a tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from groupdetr.ops.transfer import to_device


def level_sizes(
    shapes: Sequence[tuple[int, int]], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return the width and the height of every level, [L,2].

    ``shapes`` are the height and the width of every level. In a graph that is being exported, they
    depend on the size of the image.
    """
    if not torch.compiler.is_exporting():
        sizes = torch.tensor([(width, height) for height, width in shapes], dtype=dtype)
        return to_device(sizes, device)
    # `torch.tensor` would write the numbers of the recorded image into the graph.
    sizes_of_levels = []
    for height, width in shapes:
        for side in (width, height):
            sizes_of_levels.append(torch.full((), side, dtype=dtype, device=device))
    return torch.stack(sizes_of_levels).unflatten(0, (-1, 2))
