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

        At inference there is one group, by default the primary one: see the recipe's
        ``inference_group``. If there are K groups, they are flattened to [B,K*N,.].
        """
        num_denoising = self.queries.num_denoising
        return self.layers[-1][:, :, num_denoising:].flatten_groups()

    def supervised(self) -> list[SupervisedPredictions]:
        """Return everything that has a loss, for the criterion.

        The first entry has no assignment yet: the proposals, if there are any, and the matching
        queries of every decoder layer. The second, if there is one, has the denoising queries of
        every decoder layer with their known assignment.
        """
        queries = self.queries
        names = tuple(f"layer{i}" for i in range(len(self.layers)))
        matching = Predictions.stack(self.layers)  # [L,B,K,D+N,.]

        denoising = []
        if queries.denoising is not None:
            of_denoising_queries, matching = matching.split(queries.num_denoising)
            denoising = [queries.denoising.supervised(names, of_denoising_queries)]

        # Proposals have the shape of the predictions of one layer. They come before the layers.
        if queries.proposals is not None:
            names = ("proposals", *names)
            matching = queries.proposals[None].cat(matching)
        matched = SupervisedPredictions(names, matching, total_groups=queries.total_groups)
        return [matched, *denoising]
