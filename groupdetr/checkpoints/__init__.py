"""Checkpoint files of any origin: reading them, our own format, and tables of tensor names."""
