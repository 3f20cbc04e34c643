"""Methods behind one interface: one file each.

Every file of this folder is imported, so that the command line knows the method in it by its class name.
"""

import importlib
import inspect
import pkgutil

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
from bayeslora.options.classes import subclasses

__all__ = [
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

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def method_classes() -> list[type[Method]]:
    """The methods known so far, those of other packages that were imported included, by name."""
    named = {method for method in subclasses(Method) if "name" in vars(method) and not inspect.isabstract(method)}
    return sorted(named, key=lambda method: method.name)
