"""Checkpoint files: reading those of any origin, our own format, and tables of tensor names."""
