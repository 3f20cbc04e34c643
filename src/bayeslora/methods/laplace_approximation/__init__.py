"""Laplace approximation over LoRA weights: Kronecker-factored curvature, evidence, and the linearised predictive."""

from bayeslora.methods.laplace_approximation.curvature import (
    corrected_blocks,
    kronecker_blocks,
    leading_root,
    output_hessian,
)
from bayeslora.methods.laplace_approximation.evidence import best_prior_precision, eigenvalues, fit_prior, log_evidence
from bayeslora.methods.laplace_approximation.gaussian import LOGIT_DRAWS, GaussianLogits, normal_points
from bayeslora.methods.laplace_approximation.kronecker import (
    CorrectedBlock,
    KroneckerBlock,
    KroneckerSum,
    OuterProductSum,
)
from bayeslora.methods.laplace_approximation.low_rank import (
    LowRankGaussian,
    ScoreCovariance,
    contrasts,
    leading_directions,
    low_rank_curvature,
)
from bayeslora.methods.laplace_approximation.predictive import covariance_root, logit_covariance
from bayeslora.methods.laplace_approximation.recording import Recording, lora_maps, record
from bayeslora.methods.laplace_approximation.subspace import Subspace

__all__ = [
    "LOGIT_DRAWS",
    "CorrectedBlock",
    "GaussianLogits",
    "KroneckerBlock",
    "KroneckerSum",
    "LowRankGaussian",
    "OuterProductSum",
    "Recording",
    "ScoreCovariance",
    "Subspace",
    "best_prior_precision",
    "contrasts",
    "corrected_blocks",
    "covariance_root",
    "eigenvalues",
    "fit_prior",
    "kronecker_blocks",
    "leading_directions",
    "leading_root",
    "log_evidence",
    "logit_covariance",
    "lora_maps",
    "low_rank_curvature",
    "normal_points",
    "output_hessian",
    "record",
]
