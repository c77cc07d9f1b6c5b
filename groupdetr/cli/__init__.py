"""The command line: the options of every command, and `main`, which runs a command."""
