"""q(W): distributions of one LoRA factor given its parameters, free of PEFT."""

from bayeslora.posteriors.weights.base import KL, Noise, WeightPosterior
from bayeslora.posteriors.weights.directions import INITIAL_MAGNITUDE, DirectionsWeights
from bayeslora.posteriors.weights.gaussian import FixedGaussianWeights, GaussianWeights
from bayeslora.posteriors.weights.inducing import InducingWeights
from bayeslora.posteriors.weights.point import MembersWeights, PointWeights, SnapshotWeights
from bayeslora.posteriors.weights.whitening import Whitening, whiten

__all__ = [
    "INITIAL_MAGNITUDE",
    "KL",
    "DirectionsWeights",
    "FixedGaussianWeights",
    "GaussianWeights",
    "InducingWeights",
    "MembersWeights",
    "Noise",
    "PointWeights",
    "SnapshotWeights",
    "WeightPosterior",
    "Whitening",
    "whiten",
]
