"""Random LoRA adapters as PEFT methods."""

from bayeslora.tuner.bayesian_lora import BayesianLoraConfig
from bayeslora.tuner.config import FORMAT_VERSION, Part, RandomLoraConfig, register
from bayeslora.tuner.model import RandomLoraModel
from bayeslora.tuner.targets import default_targets

__all__ = [
    "FORMAT_VERSION",
    "BayesianLoraConfig",
    "Part",
    "RandomLoraConfig",
    "RandomLoraModel",
    "default_targets",
    "register",
]
