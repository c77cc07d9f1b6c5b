"""Encoders: from feature maps to the memory that object queries attend to."""
