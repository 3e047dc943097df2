"""How far a result is from the oracle, and how far it may be."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlx_autoperfect.dtypes import DType

Array = NDArray[Any]

# A candidate may err this many times as much as stock MLX on the same case, plus one rounding.
STOCK_FACTOR = 4.0
_ROUNDING = 1.0


@dataclass(frozen=True)
class ErrorStats:
    """Errors in units in the last place of each row's largest value.

    Attributes:
        worst: the largest.
        mean: the average magnitude.
        finite: whether every element is finite where the oracle is.
    """

    worst: float
    mean: float
    finite: bool


def error(result: Array, oracle: Array, dtype: DType) -> ErrorStats:
    """Errors of ``result`` against ``oracle`` (float64, equal shapes), per row of the last axis."""
    wide = result.astype(np.float64)
    finite = bool(np.isfinite(wide[np.isfinite(oracle)]).all())
    scale = np.abs(oracle).max(axis=-1, keepdims=True) if oracle.ndim else np.abs(oracle)
    unit = np.maximum(scale, np.finfo(np.float32).tiny) * dtype.epsilon
    with np.errstate(invalid="ignore", over="ignore"):
        ulps = np.abs(wide - oracle) / unit
    ulps = np.where(np.isnan(ulps), np.inf, ulps)
    return ErrorStats(float(ulps.max(initial=0.0)), float(ulps.mean()) if ulps.size else 0.0, finite)


def bound(dtype: DType, length: int, stock: ErrorStats) -> float:
    """The largest error that a candidate may have, in the units of :class:`ErrorStats`.

    The first term is fixed beforehand: one rounding to ``dtype`` and a float32 sum of ``length`` terms
    whose rounding errors add up like a random walk. The second follows stock's own error on the case.
    """
    ratio = DType.F32.epsilon / dtype.epsilon
    fixed = _ROUNDING + 8.0 * sqrt(length) * ratio
    return min(fixed, STOCK_FACTOR * stock.worst + _ROUNDING)
