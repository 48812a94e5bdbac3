"""Reports of runs: Markdown, plots, closing tables and live progress."""

from finepruning.report.writer import write

__all__ = ["write"]
