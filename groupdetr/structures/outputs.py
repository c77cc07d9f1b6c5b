"""All that a forward pass says, and what of it is supervised."""

from __future__ import annotations

from dataclasses import dataclass

from groupdetr.structures.aux_outputs import Stages
from groupdetr.structures.predictions import Predictions
from groupdetr.structures.queries import Queries


@dataclass
class Outputs:
    """The predictions of every decoder layer, and the queries they came from."""

    layers: list[Predictions]  # L of [B,K,N,.]
    queries: Queries

    @property
    def answer(self) -> Predictions:
        """The last layer's predictions for the queries that inference keeps, [B,N,.].

        The query source decides at inference which groups run (the primary one, unless told otherwise); if it
        kept several, theirs stand end to end.
        """
        return self.layers[-1][:, :, self.queries.num_denoising :].end_to_end()

    def stages(self) -> list[Stages]:
        """What the criterion supervises, deep supervision of every decoder layer: first what is to be matched, the
        proposals that queries came from in front of the layers, then the denoising queries of all layers."""
        names, queries = tuple(f"layer{i}" for i in range(len(self.layers))), self.queries
        layers, known = Predictions.stack(self.layers), []
        if queries.denoising is not None:
            denoised, layers = layers.split(queries.num_denoising)
            known = [queries.denoising.stages(names, denoised)]
        if queries.proposals is not None:
            names, layers = ("proposals", *names), queries.proposals[None].then(layers)
        return [Stages(names, layers, among=queries.among), *known]
