"""Variational distributions q(V) over the whitened inducing variables: one family, one file."""

from __future__ import annotations

from typing import Any

from bayeslora.options.registry import Registry
from bayeslora.posteriors.base import InducingPosterior
from bayeslora.posteriors.diagonal import Diagonal
from bayeslora.posteriors.ensemble import Ensemble
from bayeslora.posteriors.flow import Flow
from bayeslora.posteriors.full import Full
from bayeslora.posteriors.matrix_normal import MatrixNormal

__all__ = [
    "POSTERIORS",
    "Diagonal",
    "Ensemble",
    "Flow",
    "Full",
    "InducingPosterior",
    "MatrixNormal",
    "get_posterior",
    "posterior_names",
]

POSTERIORS: Registry[InducingPosterior] = Registry(InducingPosterior, __name__)  # type: ignore[type-abstract]
"""By name."""


def posterior_names() -> list[str]:
    """Names of the families, as `BayesianLoraConfig(posterior=...)` takes them."""
    return POSTERIORS.names()


def get_posterior(name: str, rows: int, columns: int, std: float, **options: Any) -> InducingPosterior:
    """The family called `name` for V `[rows, columns]`; `options` are the family's own fields.

    Raises:
        ValueError: The name is unknown (the message has the nearest right one), or an option is.
    """
    POSTERIORS.check(name, "posterior")
    try:
        return POSTERIORS.get(name)(rows=rows, columns=columns, std=std, **options)
    except TypeError as error:
        # PEFT takes a TypeError for a field that it does not know, and asks again without end.
        raise ValueError(f"posterior_options do not fit to posterior {name!r}: {error}.") from error
