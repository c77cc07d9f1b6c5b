"""The function that each command runs. It takes the options of the command as keyword arguments."""
