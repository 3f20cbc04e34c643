"""What fine-tuning did to the weights of an adapter or of a posterior: intruder dimensions (arXiv 2410.21228)."""

from bayeslora.experiments.intruder_dimensions.intruders import Spectrum, left_singular_vectors, repaired, spectrum
from bayeslora.experiments.intruder_dimensions.run import diagnose

__all__ = ["Spectrum", "diagnose", "left_singular_vectors", "repaired", "spectrum"]
