"""What is asked of a detector: data set, post-processing and evaluation of one task."""
