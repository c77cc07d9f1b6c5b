"""Boxes, masks and scenes drawn on images."""
