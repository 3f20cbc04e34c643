"""Generation with uncertainty: S draws of the posterior write one text together, and say where they disagree."""

from bayeslora.prediction.generation.decoding import generate
from bayeslora.prediction.generation.prompts import encode_prompts
from bayeslora.prediction.generation.result import Generation, Measure, Span

__all__ = ["Generation", "Measure", "Span", "encode_prompts", "generate"]
