"""One file for each verb: its options as a dataclass, and what it does. None imports torch before it runs."""
