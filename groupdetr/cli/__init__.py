"""The command line: options of every verb, and `main`, which runs a verb."""
