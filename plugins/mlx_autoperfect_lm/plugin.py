"""What this host tells the core: which caches it may append to, and what caches a model uses.

``activate`` is what the launcher calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlx_autoperfect.hookspecs import hookimpl
from mlx_autoperfect_lm import _sampling, activate

__all__ = ["activate", "autoperfect_cache_types", "autoperfect_caches", "autoperfect_optimized"]


@hookimpl
def autoperfect_cache_types() -> Sequence[type]:
    """Only the plain cache: its keys lie in order, and its offset counts them."""
    from mlx_lm.models.cache import KVCache

    return (KVCache,)


@hookimpl
def autoperfect_caches(model: Any) -> Sequence[Any] | None:
    """The caches that mlx-lm makes for ``model``, one per block."""
    from mlx_lm.models.cache import make_prompt_cache

    if not hasattr(model, "make_cache") and not hasattr(model, "layers"):
        return None
    return list(make_prompt_cache(model))


@hookimpl
def autoperfect_optimized(model: Any) -> None:
    """Sampling uses the kernel that was proven for this model's logits."""
    _sampling.attach()
