"""Bayesian-LoRA on Hugging Face PEFT: calibrated adapters that know what they do not know."""

from bayeslora.from_lora import from_lora
from bayeslora.generation import generate
from bayeslora.objective import kl_divergence, negative_elbo
from bayeslora.predictive import Predictive, predict
from bayeslora.sampling import random_factors, sampling
from bayeslora.scoring import Classification, Cloze, Letter
from bayeslora.tasks import get_task
from bayeslora.trainer import BayesianLoraTrainer, ELBOTrainerMixin
from bayeslora.tuner import BayesianLoraConfig, RandomLoraConfig, RandomLoraModel

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
    "negative_elbo",
    "predict",
    "random_factors",
    "sampling",
]
