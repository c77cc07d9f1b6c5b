"""The interface of recipes that the network, the engine and the analysis use."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

from torch import nn

from groupdetr.criterion.criterion import SetCriterion
from groupdetr.structures.camera_images import CameraImages
from groupdetr.structures.images import Images


class ModelRecipe(ABC):
    """The recipe that a network was built from, with the attributes that its users need.

    Recipes are dataclasses of hyperparameters; see `groupdetr.detectors.recipe`.
    """

    num_queries: int  # N, the queries of a group
    inference_group: int | None  # the group that runs at inference; None for all groups
    group_attention: str  # name of a function in `groupdetr.groups.GROUP_ATTENTIONS`
    match: str  # name of a function in `groupdetr.groups.MATCHES`

    @property
    def queries_of_a_group(self) -> int:
        """The number of queries that a group really has, at most one for every object.

        It is ``num_queries``, unless a detector uses each of them several times.
        """
        return self.num_queries

    @abstractmethod
    def needs_chunks(self, groups_at_once: int | None) -> bool:
        """True if ``groups_at_once`` groups at a time need more than one pass of the decoder."""

    @abstractmethod
    def criterion(self) -> SetCriterion:
        """Return the set criterion, with the terms and the matching of this detector."""

    @abstractmethod
    def no_weight_decay(self, network: nn.Module) -> Iterable[str]:
        """Return the names of the parameters of ``network`` that have no weight decay."""

    @abstractmethod
    def example_images(self, side: int) -> Images | CameraImages:
        """Return two images of noise that the network accepts, of different sizes, padded."""
