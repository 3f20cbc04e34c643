"""The mathematics of random LoRA factors, free of PEFT."""

from bayeslora.factors.directions import INITIAL_MAGNITUDE, DirectionsFamily
from bayeslora.factors.family import KL, Family, Noise
from bayeslora.factors.gaussian import FixedGaussianFamily, GaussianFamily
from bayeslora.factors.inducing import InducingFamily
from bayeslora.factors.members import MembersFamily
from bayeslora.factors.module import RandomFactor
from bayeslora.factors.point import PointFamily
from bayeslora.factors.random_module import RandomModule, check_sample_major, random_signs
from bayeslora.factors.stack import forget, materialise, stacked_kl
from bayeslora.factors.whitening import Whitening, whiten

__all__ = [
    "INITIAL_MAGNITUDE",
    "KL",
    "DirectionsFamily",
    "Family",
    "FixedGaussianFamily",
    "GaussianFamily",
    "InducingFamily",
    "MembersFamily",
    "Noise",
    "PointFamily",
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
