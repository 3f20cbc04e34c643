"""Laplace approximation over LoRA weights: Kronecker-factored curvature, evidence, and the linearised predictive."""

from bayeslora.laplace.curvature import hessian_root, kronecker_blocks
from bayeslora.laplace.evidence import best_prior_precision, eigenvalues, log_evidence
from bayeslora.laplace.kronecker import KroneckerBlock, KroneckerSum, OuterProductSum
from bayeslora.laplace.predictive import draw_logits, item_noise, logit_covariance
from bayeslora.laplace.recording import Recording, lora_maps, record

__all__ = [
    "KroneckerBlock",
    "KroneckerSum",
    "OuterProductSum",
    "Recording",
    "best_prior_precision",
    "draw_logits",
    "eigenvalues",
    "hessian_root",
    "item_noise",
    "kronecker_blocks",
    "log_evidence",
    "logit_covariance",
    "lora_maps",
    "record",
]
