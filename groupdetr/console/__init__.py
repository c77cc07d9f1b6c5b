"""Everything that is printed: the console, progress, and text that is data."""
