"""Heads of typed questions: one for each question, which knows the options from its labels."""
