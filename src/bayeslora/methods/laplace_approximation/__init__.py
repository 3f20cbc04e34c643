"""Laplace approximation over LoRA weights: Kronecker-factored curvature, evidence, and the linearised predictive."""

from bayeslora.methods.laplace_approximation.curvature import hessian_root, kronecker_blocks
from bayeslora.methods.laplace_approximation.evidence import best_prior_precision, eigenvalues, log_evidence
from bayeslora.methods.laplace_approximation.gaussian import LOGIT_DRAWS, GaussianLogits, normal_points
from bayeslora.methods.laplace_approximation.kronecker import KroneckerBlock, KroneckerSum, OuterProductSum
from bayeslora.methods.laplace_approximation.predictive import covariance_root, logit_covariance
from bayeslora.methods.laplace_approximation.recording import Recording, lora_maps, record

__all__ = [
    "LOGIT_DRAWS",
    "GaussianLogits",
    "KroneckerBlock",
    "KroneckerSum",
    "OuterProductSum",
    "Recording",
    "best_prior_precision",
    "covariance_root",
    "eigenvalues",
    "hessian_root",
    "kronecker_blocks",
    "log_evidence",
    "logit_covariance",
    "lora_maps",
    "normal_points",
    "record",
]
