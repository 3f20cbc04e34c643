"""The command line `bayeslora`."""
