"""Everything that is printed: the console, and text that is data."""
