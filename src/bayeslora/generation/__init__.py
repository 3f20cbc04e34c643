"""Generation with uncertainty: S draws of the posterior write one text together, and say where they disagree."""

from bayeslora.generation.decoding import generate
from bayeslora.generation.prompts import encode_prompts
from bayeslora.generation.result import Generation, Measure, Span

__all__ = ["Generation", "Measure", "Span", "encode_prompts", "generate"]
