"""Object detection and instance segmentation in single images."""
