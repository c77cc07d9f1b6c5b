"""Where queries come from. A query source yields K groups in training and those kept at inference otherwise."""
