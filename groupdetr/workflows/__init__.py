"""What each verb of the command line does. A workflow takes the options as keyword arguments."""
