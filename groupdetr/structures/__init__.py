"""Dataclasses of tensors: what flows between the parts of a detector. Each is validated when it is created."""
