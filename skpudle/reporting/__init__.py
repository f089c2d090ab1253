"""Report on a fitted learner: one page, and findings in words."""

from skpudle.reporting._findings import findings
from skpudle.reporting._page import Report, report

__all__ = ["Report", "findings", "report"]
