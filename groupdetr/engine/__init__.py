"""The training loop and everything around it. It knows no detector and no dataset by name."""
