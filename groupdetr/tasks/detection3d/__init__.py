"""Detection in space: the task, and what the verbs of the command line do for it."""
