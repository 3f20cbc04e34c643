"""Variational distributions q(V) over the whitened inducing variables: one family, one file."""

from __future__ import annotations

import difflib
from typing import Any

from bayeslora.posteriors.base import InducingPosterior
from bayeslora.posteriors.diagonal import Diagonal
from bayeslora.posteriors.ensemble import Ensemble
from bayeslora.posteriors.flow import Flow
from bayeslora.posteriors.full import Full
from bayeslora.posteriors.matrix_normal import MatrixNormal

__all__ = [
    "Diagonal",
    "Ensemble",
    "Flow",
    "Full",
    "InducingPosterior",
    "MatrixNormal",
    "get_posterior",
    "posterior_names",
]


def posterior_names() -> list[str]:
    """Names of the families, as `BayesianLoraConfig(posterior=...)` takes them."""
    return sorted(family.name for family in InducingPosterior.__subclasses__())


def get_posterior(name: str, rows: int, columns: int, std: float, **options: Any) -> InducingPosterior:
    """The family called `name` for V `[rows, columns]`; `options` are the family's own fields.

    Raises:
        ValueError: The name is unknown (the message has the nearest right one), or an option is.
    """
    for family in InducingPosterior.__subclasses__():
        if family.name == name:
            try:
                return family(rows=rows, columns=columns, std=std, **options)
            except TypeError as error:
                # PEFT takes a TypeError for a field that it does not know, and asks again without end.
                raise ValueError(f"posterior_options do not fit to posterior {name!r}: {error}.") from error
    nearest = difflib.get_close_matches(name, posterior_names(), n=1)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    raise ValueError(f"posterior must be one of {posterior_names()}, got {name!r}.{hint}")
