"""Learning-rate sweeps: every row of a comparison over a log grid of rates, chosen on dev (arXiv 2602.04998)."""

from __future__ import annotations

from bayeslora.experiments.learning_rates.config import SweepConfig, log_grid

__all__ = ["SweepConfig", "log_grid"]
