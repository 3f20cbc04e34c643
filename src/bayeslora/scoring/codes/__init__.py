"""Typed questions answered by codes: no new parameters, zero-shot or adapted."""

from bayeslora.scoring.codes.reading import CodeReader, TooLongError, rotations
from bayeslora.scoring.codes.template import Template
from bayeslora.scoring.codes.tokens import Codes, single_token_codes

__all__ = ["CodeReader", "Codes", "Template", "TooLongError", "rotations", "single_token_codes"]
