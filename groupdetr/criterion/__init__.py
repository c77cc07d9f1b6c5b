"""What training asks for: match, compare, normalise."""
