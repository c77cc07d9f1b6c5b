"""Backbones: from images to feature maps, fine to coarse. Most are networks of timm."""
