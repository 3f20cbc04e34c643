"""Reports on the results of a comparison."""

from __future__ import annotations

from bayeslora.report.page import write_report

__all__ = ["write_report"]
