"""How a detector is trained and evaluated. Knows no detector by name."""
