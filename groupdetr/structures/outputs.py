"""The output of a detector: the predictions of all decoder layers."""

from __future__ import annotations

from dataclasses import dataclass

from groupdetr.structures.predictions import Predictions
from groupdetr.structures.queries import Queries
from groupdetr.structures.supervised_predictions import SupervisedPredictions


@dataclass
class Outputs:
    """The predictions of every decoder layer, and the queries that they were computed from."""

    layers: list[Predictions]  # L of [B,K,N,.]
    queries: Queries

    @property
    def final(self) -> Predictions:
        """The last layer's predictions of the matching queries, [B,N,.].

        At inference the query source yields the primary group only, unless the recipe's
        ``inference_group`` says otherwise.
        If there are K groups, they are flattened to [B,K*N,.].
        """
        num_denoising = self.queries.num_denoising
        return self.layers[-1][:, :, num_denoising:].flatten_groups()

    def supervised(self) -> list[SupervisedPredictions]:
        """Return everything that has a loss, for the criterion.

        The first entry has no assignment yet: the proposals, if there are any, and the matching
        queries of every decoder layer. The second, if there is one, has the denoising queries of
        every decoder layer with their known assignment.
        """
        names = tuple(f"layer{i}" for i in range(len(self.layers)))
        layers, queries = Predictions.stack(self.layers), self.queries
        denoising = []
        if queries.denoising is not None:
            noised, layers = layers.split(queries.num_denoising)
            denoising = [queries.denoising.supervised(names, noised)]
        if queries.proposals is not None:
            names = ("proposals", *names)
            layers = queries.proposals[None].cat(layers)
        matching = SupervisedPredictions(names, layers, total_groups=queries.total_groups)
        return [matching, *denoising]
