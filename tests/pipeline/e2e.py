"""Stock and optimized twins of tiny models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import KVCache
from numpy.typing import NDArray

from mlx_autoperfect.api import Optimized, optimize, state_of
from mlx_autoperfect.dtypes import DType, dtype_from_mlx
from mlx_autoperfect.verify.compare import error
from mlx_autoperfect.verify.judge import to_numpy
from tests.models import Spec, build

Array = NDArray[Any]
UNTIED = ("tie_word_embeddings", False)
LLAMA = Spec("llama", "float16", (4, 32))
QWEN2 = Spec("qwen2", "bfloat16", None, (UNTIED,))
QWEN3 = Spec("qwen3", "float32", (8, 64), (UNTIED,))


@dataclass
class Twins:
    """The same weights twice: as mlx-lm runs them, and optimized."""

    stock: nn.Module
    fast: nn.Module

    @property
    def state(self) -> Optimized:
        found = state_of(self.fast)
        assert found is not None
        return found

    def caches(self, make: Any = KVCache) -> tuple[list[Any], list[Any]]:
        layers = len(self.stock.layers)
        return [make() for _ in range(layers)], [make() for _ in range(layers)]


def twins(spec: Spec, seed: int = 0) -> Twins:
    fast = build(spec, seed)
    optimize(fast)
    return Twins(build(spec, seed), fast)


def dtype_of(array: mx.array) -> DType:
    found = dtype_from_mlx(array.dtype)
    assert found is not None
    return found


def ulps(result: mx.array, reference: Any) -> float:
    """The largest difference, in units in the last place of the row's largest value."""
    exact = reference if isinstance(reference, np.ndarray) else to_numpy(reference).astype(np.float64)
    return error(to_numpy(result), exact, dtype_of(result)).worst


def close(result: mx.array, reference: mx.array, limit: float = 64.0) -> bool:
    """Equal dtype and shape, and values that differ by rounding only."""
    return result.dtype == reference.dtype and result.shape == reference.shape and ulps(result, reference) < limit
