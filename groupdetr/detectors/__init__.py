"""The detectors: one recipe for each paper."""
