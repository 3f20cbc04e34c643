"""The mathematics of random LoRA factors, free of PEFT."""

from bayeslora.factors.family import KL, Family, Noise
from bayeslora.factors.gaussian import FixedGaussianFamily, GaussianFamily
from bayeslora.factors.inducing import InducingFamily
from bayeslora.factors.members import MembersFamily
from bayeslora.factors.module import (
    RandomFactor,
    RandomModule,
    check_sample_major,
    forget,
    materialise,
    random_signs,
    stacked_kl,
)
from bayeslora.factors.whitening import Whitening, whiten

__all__ = [
    "KL",
    "Family",
    "FixedGaussianFamily",
    "GaussianFamily",
    "InducingFamily",
    "MembersFamily",
    "Noise",
    "RandomFactor",
    "RandomModule",
    "Whitening",
    "check_sample_major",
    "forget",
    "materialise",
    "random_signs",
    "stacked_kl",
    "whiten",
]
