"""Report on a fitted learner: one page, and findings in words."""

from skpudle.reporting._findings import findings
from skpudle.reporting._page import report

__all__ = ["findings", "report"]
