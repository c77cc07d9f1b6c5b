"""Query sources: learned queries, proposals of the encoder, and denoising queries."""
