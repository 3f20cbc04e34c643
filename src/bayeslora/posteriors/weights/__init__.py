"""q(W): distributions of one LoRA factor given its parameters, free of PEFT."""

from bayeslora.posteriors.weights.base import KL, Family, Noise
from bayeslora.posteriors.weights.directions import INITIAL_MAGNITUDE, DirectionsFamily
from bayeslora.posteriors.weights.gaussian import FixedGaussianFamily, GaussianFamily
from bayeslora.posteriors.weights.inducing import InducingFamily
from bayeslora.posteriors.weights.members import MembersFamily
from bayeslora.posteriors.weights.point import PointFamily
from bayeslora.posteriors.weights.whitening import Whitening, whiten

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
    "Whitening",
    "whiten",
]
