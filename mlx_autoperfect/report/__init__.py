"""What a person reads about an analysis: plain text, tables for a terminal, JSON, and the debug ladder."""

from __future__ import annotations

from mlx_autoperfect.report.debug import debug_text
from mlx_autoperfect.report.summary import Report, summarize
from mlx_autoperfect.report.text import explain_text

__all__ = ["Report", "debug_text", "explain_text", "summarize"]
