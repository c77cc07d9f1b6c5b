"""3D detection: the task, and the workflows of its detectors."""
