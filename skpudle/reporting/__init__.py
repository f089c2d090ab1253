"""What a fitted learner has come to: a report as one page, and in words what is wrong with it."""

from skpudle.reporting._findings import findings
from skpudle.reporting._page import Report, report

__all__ = ["Report", "findings", "report"]
