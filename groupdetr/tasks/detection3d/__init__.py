"""3D object detection in scenes of several cameras."""
