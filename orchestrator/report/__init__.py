"""The report of a run, and runs side by side."""

from orchestrator.report.comparing.compare import compare
from orchestrator.report.render import render

__all__ = ["compare", "render"]
