"""From feature maps to the memory that queries look at."""
