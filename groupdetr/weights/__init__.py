"""Weights in and out: published checkpoints of others, and our own files. One importer for each layout."""

from groupdetr.weights.importing import import_weights
from groupdetr.weights.loading import LoadReport, load_weights
from groupdetr.weights.native import read, save

__all__ = ["LoadReport", "import_weights", "load_weights", "read", "save"]
