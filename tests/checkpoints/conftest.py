"""The small model of the tests of weights."""

from tests.weights.conftest import model

__all__ = ["model"]
