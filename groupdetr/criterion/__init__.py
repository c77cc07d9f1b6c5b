"""The set criterion: the matcher, the losses, and the terms that both of them use."""
