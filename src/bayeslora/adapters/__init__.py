"""Random LoRA adapters as PEFT methods."""

from bayeslora.adapters.bayesian_lora import BayesianLoraConfig
from bayeslora.adapters.config import FORMAT_VERSION, Part, RandomLoraConfig, Side
from bayeslora.adapters.model import RandomLoraModel
from bayeslora.adapters.registration import register
from bayeslora.adapters.targets import default_targets

__all__ = [
    "FORMAT_VERSION",
    "BayesianLoraConfig",
    "Part",
    "RandomLoraConfig",
    "RandomLoraModel",
    "Side",
    "default_targets",
    "register",
]
