"""Pure functions of tensors and arrays. They import nothing else of the library."""
