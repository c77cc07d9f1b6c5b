"""Weights of a detector: published checkpoints of every known layout, and files of this library."""
