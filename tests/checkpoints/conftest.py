"""The small model of the weights tests."""

from tests.weights.conftest import model

__all__ = ["model"]
