"""One file for each verb: its options as a dataclass. None imports torch."""
