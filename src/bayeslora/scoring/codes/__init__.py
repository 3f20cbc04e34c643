"""Typed questions answered by codes: no new parameters, zero-shot or adapted."""

from bayeslora.scoring.codes.items import CodeBatch, CodeScoring
from bayeslora.scoring.codes.prompts import CodePrompts, TooLongError, rotations
from bayeslora.scoring.codes.reading import CodeReader
from bayeslora.scoring.codes.template import Template
from bayeslora.scoring.codes.tokens import Codes, single_token_codes

__all__ = [
    "CodeBatch",
    "CodePrompts",
    "CodeReader",
    "CodeScoring",
    "Codes",
    "Template",
    "TooLongError",
    "rotations",
    "single_token_codes",
]
