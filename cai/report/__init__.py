"""The report of one or many runs: every figure with its interval, as one HTML page and as JSON."""

from cai.report.page import gather, write

__all__ = ["gather", "write"]
