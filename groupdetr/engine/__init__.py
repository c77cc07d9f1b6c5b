"""The training loop and everything around it, independent of detectors and datasets."""
