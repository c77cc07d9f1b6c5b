"""Export of trained detectors to the formats of other runtimes, and their verification."""
