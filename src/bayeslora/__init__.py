"""Bayesian-LoRA on Hugging Face PEFT: calibrated adapters that know what they do not know."""

import importlib
from typing import TYPE_CHECKING, Any

from bayeslora.from_lora import from_lora
from bayeslora.generation import generate
from bayeslora.objective import kl_divergence, negative_elbo
from bayeslora.predictive import Predictive, predict
from bayeslora.sampling import random_factors, sampling
from bayeslora.scoring import Classification, Cloze, Letter
from bayeslora.tasks import get_task
from bayeslora.trainer import BayesianLoraTrainer, ELBOTrainerMixin
from bayeslora.tuner import BayesianLoraConfig, RandomLoraConfig, RandomLoraModel

if TYPE_CHECKING:
    from bayeslora.hub import push_to_hub
    from bayeslora.runs import load_run
    from bayeslora.sft import BayesianSFTTrainer as BayesianSFTTrainer

__version__ = "0.1.0"

__all__ = [
    "BayesianLoraConfig",
    "BayesianLoraTrainer",
    "Classification",
    "Cloze",
    "ELBOTrainerMixin",
    "Letter",
    "Predictive",
    "RandomLoraConfig",
    "RandomLoraModel",
    "from_lora",
    "generate",
    "get_task",
    "kl_divergence",
    "load_run",
    "negative_elbo",
    "predict",
    "push_to_hub",
    "random_factors",
    "sampling",
]

_LATER = {
    "BayesianSFTTrainer": "bayeslora.sft",
    "load_run": "bayeslora.runs",
    "push_to_hub": "bayeslora.hub",
}
"""Names whose modules import metrics, pictures or TRL, which a user of adapters alone need not wait for or have.

BayesianSFTTrainer is not in `__all__`, so that `from bayeslora import *` needs no extra.
"""


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LATER[name]), name)
