"""The output of a detector: the predictions of all decoder layers."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from groupdetr.structures.predictions import Predictions
from groupdetr.structures.queries import Queries
from groupdetr.structures.supervised_predictions import SupervisedPredictions
from groupdetr.structures.tensor_dataclass import require, require_count


@dataclass
class Outputs:
    """The predictions of every decoder layer, and the queries that they were computed from.

    >>> logits, boxes = torch.rand(6, 2, 3300, 80), torch.rand(6, 2, 3300, 4)  # of six layers
    >>> outputs = groupdetr.Outputs.from_flat(logits, boxes, num_groups=11)
    >>> outputs.layers[-1].boxes.shape
    torch.Size([2, 11, 300, 4])
    """

    layers: list[Predictions]  # L of [B,K,N,.]
    # None: all queries are matching queries, and there are no proposals. Outputs of a detector that
    # is not of this library have no queries, see `from_flat`.
    queries: Queries | None = None

    @classmethod
    def from_flat(cls, logits: Tensor, boxes: Tensor, num_groups: int) -> Outputs:
        """Create the outputs of your own detector from flat predictions, for `SetCriterion`.

        ``logits`` [L,B,K*N,classes] are those of all decoder layers, the last layer last; a softmax
        has one class more, "no object", as the last one. ``boxes`` [L,B,K*N,4] are cx,cy,w,h in
        [0,1], relative to the image. Without the first axis, [B,K*N,.], there is one layer. The K
        groups follow each other: group 0 has the first N queries. In training ``num_groups`` is K.
        At inference it is 1, if only one group runs.

        `ValueError` if a shape is not as described, or if the queries cannot be split into groups
        of equal size.
        """
        for name, x in (("logits", logits), ("boxes", boxes)):
            require(
                isinstance(x, Tensor) and x.is_floating_point(),
                f"{name} must be a tensor of floating-point numbers, "
                f"not {x.dtype if isinstance(x, Tensor) else type(x).__name__}",
            )
        shapes = f"logits {list(logits.shape)} and boxes {list(boxes.shape)}"
        require(
            logits.ndim in (3, 4) and logits.shape[:-1] == boxes.shape[:-1],
            "logits must be [L,B,K*N,classes] and boxes [L,B,K*N,4], both with or both without L, "
            f"not {shapes}",
        )
        require(boxes.shape[-1] == 4, f"boxes must have 4 coordinates (cx, cy, w, h), not {shapes}")
        require_count("num_groups", num_groups)
        _require_boxes_in_image(boxes)
        num_queries = logits.shape[-2]
        require(logits.numel() > 0, f"there must be a layer, an image and a query, not {shapes}")
        require(
            num_queries % num_groups == 0,
            f"{num_queries} queries cannot be split into {num_groups} groups of equal size",
        )

        def split_groups(x: Tensor) -> Tensor:  # [B,K*N,.] or [L,B,K*N,.] -> [L,B,K,N,.]
            layers = x if x.ndim == 4 else x.unsqueeze(0)
            return layers.unflatten(2, (num_groups, -1))

        logits_of_layers, boxes_of_layers = split_groups(logits), split_groups(boxes)
        return cls([Predictions(*layer) for layer in zip(logits_of_layers, boxes_of_layers)])

    @property
    def final(self) -> Predictions:
        """The last layer's predictions of the matching queries, [B,N,.].

        At inference there is one group, by default the primary one: see the recipe's
        ``inference_group``. If there are K groups, they are flattened to [B,K*N,.].
        """
        return self.final_of_groups.flatten_groups()

    @property
    def final_of_groups(self) -> Predictions:
        """The last layer's predictions of the matching queries of each group, [B,K,N,.]."""
        num_denoising = 0 if self.queries is None else self.queries.num_denoising
        return self.layers[-1][:, :, num_denoising:]

    def supervised(self) -> list[SupervisedPredictions]:
        """Return everything that has a loss, for the criterion.

        The first entry has no assignment yet: the proposals, if there are any, and the matching
        queries of every decoder layer. The second, if there is one, has the denoising queries of
        every decoder layer with their known assignment.
        """
        queries = self.queries
        names = tuple(f"layer{i}" for i in range(len(self.layers)))
        if queries is None:
            return [SupervisedPredictions(names, Predictions.stack(self.layers))]

        # Proposals have the shape of the matching queries of one layer, and come before the layers.
        proposals = [] if queries.proposals is None else [queries.proposals]
        names_of_matching = ("proposals", *names) if proposals else names

        denoising = []
        if queries.denoising is None:
            matching = Predictions.stack([*proposals, *self.layers])  # [L,B,K,N,.]
        else:
            layers = Predictions.stack(self.layers)  # [L,B,K,D+N,.]
            of_denoising_queries, matching = layers.split(queries.num_denoising)
            denoising = [queries.denoising.supervised(names, of_denoising_queries)]
            if proposals:
                matching = proposals[0][None].cat(matching)
        matched = SupervisedPredictions(
            names_of_matching, matching, total_groups=queries.total_groups
        )
        return [matched, *denoising]


def _require_boxes_in_image(boxes: Tensor) -> None:
    """Raise `ValueError` if predicted boxes are clearly not the output of a sigmoid.

    On a GPU nothing is read, because that would wait for the GPU.
    """
    if boxes.device.type != "cpu" or boxes.numel() == 0:
        return
    lowest, highest = (float(x) for x in boxes.detach().aminmax())
    # Values that are nan are no matter of scale. The matcher reports them.
    require(
        not (lowest < 0 or highest > 1),
        f"boxes {list(boxes.shape)} must be cx, cy, w, h in [0,1], relative to the image, after "
        f"the sigmoid; they have values from {lowest:g} to {highest:g}",
    )
