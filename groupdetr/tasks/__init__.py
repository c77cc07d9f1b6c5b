"""Tasks: datasets, post-processing, evaluation, and the part of each command that differs."""
