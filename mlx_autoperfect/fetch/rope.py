"""Finds the ``rope_scaling`` entry of ``config.json`` that a GGUF's rotary settings stand for."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlx_autoperfect.errors import ModelError
from mlx_autoperfect.fetch.hyperparameters import Hyperparameters

_LOW, _HIGH, _OLD_CONTEXT = 1.0, 4.0, 8192
_TOLERANCE = 1e-5


def rope_scaling(path: Path, params: Hyperparameters, factors: NDArray[np.float32] | None) -> dict[str, Any] | None:
    """The entry for mlx-lm, or ``None`` for plain RoPE.

    GGUF stores llama 3's scaling only as its result, one divisor per frequency. Its constants are
    the published ones (low 1, high 4, 8192 positions); the factor is the largest divisor. The
    divisors they give must be those of the file.

    Args:
        path: the file, for messages.
        params: the model's numbers.
        factors: float32 of shape ``(head / 2,)``, or ``None`` when the file has none.

    Raises:
        ModelError: the scaling is of a kind that is not known here.
    """
    kind, factor = params.rope_type, params.rope_factor
    if factors is None:
        if kind == "none":
            return None
        if kind == "linear":
            return {"rope_type": "linear", "type": "linear", "factor": factor}
        raise ModelError(f"{path} scales RoPE by {kind!r}; only none, linear and llama 3's scaling can be converted")
    if kind != "none":
        raise ModelError(f"{path} has both rope_freqs and RoPE scaling {kind!r}; such a model cannot be converted")
    if factors.shape == (params.head // 2,) and np.isfinite(factors).all():
        largest = float(factors.max())
        if np.allclose(factors, _llama3(params, largest), rtol=_TOLERANCE):
            return {
                "rope_type": "llama3",
                "factor": largest,
                "low_freq_factor": _LOW,
                "high_freq_factor": _HIGH,
                "original_max_position_embeddings": _OLD_CONTEXT,
            }
    raise ModelError(f"{path} has rope_freqs that are not llama 3's; such a model cannot be converted")


def _llama3(params: Hyperparameters, factor: float) -> NDArray[np.float64]:
    """Llama 3's divisors: 1 for short waves, ``factor`` for long ones, a blend between."""
    waves = 2 * math.pi * params.rope_theta ** (np.arange(0, params.head, 2) / params.head)
    share = np.clip((_OLD_CONTEXT / waves - _LOW) / (_HIGH - _LOW), 0.0, 1.0)
    divisors: NDArray[np.float64] = 1.0 / ((1.0 - share) / factor + share)
    return divisors
