"""One paper, one recipe."""
