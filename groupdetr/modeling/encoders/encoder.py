"""The interface of encoders, which compute the memory from the feature maps of a backbone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Generic, TypeVar

from torch import Tensor, nn

from groupdetr.structures.camera_images import CameraImages
from groupdetr.structures.images import Images
from groupdetr.structures.memory import Memory

ImagesT = TypeVar("ImagesT", Images, CameraImages)


class Encoder(nn.Module, ABC, Generic[ImagesT]):
    """Feature maps of a backbone, and the images that they come from -> `Memory`.

    ``Encoder[Images]`` encodes single images, ``Encoder[CameraImages]`` scenes of several cameras.
    """

    images_type: ClassVar[type[Images] | type[CameraImages]] = Images  # what it encodes

    @abstractmethod
    def forward(self, features: list[Tensor], images: ImagesT) -> Memory:
        """``features`` are in the order from fine to coarse."""

    def set_position_embedding(self, temperature: float, offset: float) -> None:
        """Change the position embedding of the image. See `image_embedding`.

        Published weights of one detector differ in it, so loading weights may change it.
        `NotImplementedError` if the encoder has no such position embedding.
        """
        raise NotImplementedError(f"{type(self).__name__} has no position embedding of the image")
