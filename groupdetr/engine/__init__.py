"""The training loop and everything around it. It knows no detector and no data set by name."""
