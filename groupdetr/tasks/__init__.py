"""What is asked of a detector: dataset, post-processing and evaluation of one task."""
