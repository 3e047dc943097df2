"""The entry point that the core finds this host through: ``activate`` is what the launcher calls."""

from mlx_autoperfect_lm import activate

__all__ = ["activate"]
