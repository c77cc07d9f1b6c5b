"""Every preset and every row of the paper's tables: a detector and how it is trained."""
