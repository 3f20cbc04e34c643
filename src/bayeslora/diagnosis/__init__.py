"""What fine-tuning did to the weights of an adapter or of a posterior: intruder dimensions (arXiv 2410.21228)."""

from bayeslora.diagnosis.intruders import Spectrum, left_singular_vectors, repaired, spectrum
from bayeslora.diagnosis.run import diagnose

__all__ = ["Spectrum", "diagnose", "left_singular_vectors", "repaired", "spectrum"]
