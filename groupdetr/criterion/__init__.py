"""The set criterion of DETR: match queries to objects, compare the matched pairs, normalise."""
