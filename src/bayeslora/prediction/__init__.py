"""From draws to what a program acts on: predictive distributions, temperature, prediction sets, generated text."""
