"""Self-attention and cross-attention. Every axis before the last two is a batch axis."""
