"""Learning-rate sweeps: every row of a comparison over a log grid of rates, chosen on dev (arXiv 2602.04998)."""

from typing import TYPE_CHECKING

from bayeslora.options.late import late

if TYPE_CHECKING:
    from bayeslora.experiments.learning_rates.config import SweepConfig as SweepConfig
    from bayeslora.experiments.learning_rates.config import log_grid as log_grid

__all__ = ["SweepConfig", "log_grid"]

__getattr__ = late(__name__, dict.fromkeys(__all__, "config"))
