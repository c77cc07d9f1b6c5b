"""Figures and tables of the paper that are computed from a trained detector, one file each."""
