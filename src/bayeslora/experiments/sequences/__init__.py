"""Procedures: several training runs in a row, each of which begins where the one before it ended."""
