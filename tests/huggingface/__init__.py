"""Groups on detectors of transformers."""
