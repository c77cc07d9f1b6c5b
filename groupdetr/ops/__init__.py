"""Pure functions of tensors. Nothing here knows the rest of the library."""
