"""The options of each command as a dataclass, one file for each command. None imports torch."""
