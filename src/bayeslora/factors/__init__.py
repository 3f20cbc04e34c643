"""The mathematics of random LoRA factors, free of PEFT."""

from bayeslora.factors.inducing import KL, InducingFamily, Noise
from bayeslora.factors.module import RandomFactor, forget, materialise, stacked_kl
from bayeslora.factors.whitening import Whitening, whiten

__all__ = [
    "KL",
    "InducingFamily",
    "Noise",
    "RandomFactor",
    "Whitening",
    "forget",
    "materialise",
    "stacked_kl",
    "whiten",
]
