"""Methods behind one interface: one file each."""

from bayeslora.methods.base import Method, State, Training, VariationalMethod, trainable_parameters
from bayeslora.methods.bayesian_lora import BayesianLora
from bayeslora.methods.lora import Lora

__all__ = ["BayesianLora", "Lora", "Method", "State", "Training", "VariationalMethod", "trainable_parameters"]
