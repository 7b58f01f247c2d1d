"""xm: the command line of the toolstack."""
