"""Where the library says what it does: one logger, that of the name "bayeslora"."""

from __future__ import annotations

import logging

logger = logging.getLogger("bayeslora")
