"""Methods behind one interface: one file each.

Every file of this folder is imported, so that the command line knows the method in it by its class name.
"""

from bayeslora.methods.base import (
    Method,
    State,
    TrainingResult,
    VariationalMethod,
    lora_parameters,
    trainable_parameters,
)
from bayeslora.methods.bayesian_lora import BayesianLora
from bayeslora.methods.lora import Lora
from bayeslora.options.registry import Registry

__all__ = [
    "METHODS",
    "BayesianLora",
    "Lora",
    "Method",
    "State",
    "TrainingResult",
    "VariationalMethod",
    "lora_parameters",
    "method_classes",
    "trainable_parameters",
]

METHODS: Registry[Method] = Registry(Method, __name__)
"""By name; a config names a class."""

# Each file registers its adapter type with PEFT.
METHODS.names()


def method_classes() -> list[type[Method]]:
    """The methods known so far, those of other packages that were imported included, by name."""
    return METHODS.classes()
