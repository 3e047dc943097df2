"""Stand-ins for a key/value cache during a trace: offset symbolic, updates recorded as effects."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from mlx_autoperfect.capture.markers import CaptureError, Mark, Marker
from mlx_autoperfect.errors import Reason
from mlx_autoperfect.graph import ops


class CacheStandIn:
    """Answers what ``mlx_lm.models.cache.KVCache`` answers, with a traced ``offset``.

    Args:
        marker: of the running trace; ``None`` where no update may happen (the root's trace).
        offset: traced int32 scalar.
        keys: number of cached keys that ``update_and_fetch`` pretends to return.
    """

    def __init__(self, marker: Marker | None, offset: mx.array, keys: int) -> None:
        self._marker = marker
        self._keys = keys
        self.offset = offset

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        if self._marker is None:
            raise CaptureError(Reason.UNSUPPORTED_CACHE, "a cache is updated outside the blocks")
        batch, heads = keys.shape[:2]
        results = [mx.zeros((batch, heads, self._keys, array.shape[3]), array.dtype) for array in (keys, values)]
        fetched = self._marker.mark(Mark(ops.CacheUpdate(), "cache"), [keys, values], results)
        return fetched[0], fetched[1]

    def make_mask(self, rows: int, return_array: bool = False, window_size: int | None = None) -> str | None:
        if return_array or window_size is not None:
            raise CaptureError(Reason.UNSUPPORTED_CACHE, "an array mask or a sliding window")
        return None if rows == 1 else "causal"

    def __getattr__(self, name: str) -> Any:
        # hasattr() must see what KVCache has and nothing more.
        if name in {"bits", "group_size", "lengths", "left_padding", "rotated"} or name.startswith("__"):
            raise AttributeError(name)
        raise CaptureError(Reason.UNSUPPORTED_CACHE, f"the model reads cache.{name}")
