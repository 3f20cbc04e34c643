"""Methods behind one interface: one file each."""

from bayeslora.methods.base import Method, trainable_parameters
from bayeslora.methods.bayesian_lora import BayesianLora
from bayeslora.methods.lora import Lora

__all__ = ["BayesianLora", "Lora", "Method", "trainable_parameters"]
