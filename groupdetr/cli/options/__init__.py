"""The options of each verb as a dataclass. A file for each verb; none imports torch."""
