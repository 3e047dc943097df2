"""Proven kernels for functions that the host calls outside the model: today, the logits' normaliser."""

from __future__ import annotations

from typing import Any

from mlx_autoperfect.runtime.dispatch import Forwards, suspended

# (MLX dtype, width) -> prepared forwards; one entry serves every model with such logits.
_LOGSUMEXP: dict[tuple[Any, int], Forwards] = {}


def register_logsumexp(dtype: Any, width: int, forwards: Forwards) -> None:
    """Offers a kernel for ``logsumexp`` over rows of ``width`` elements of ``dtype``."""
    _LOGSUMEXP[dtype, width] = forwards


def logsumexp(x: Any) -> Any:
    """``log(sum(exp(x), -1))`` of ``x[rows, width]``, kept as ``[rows, 1]``; ``None`` when no kernel fits."""
    shape = x.shape
    if len(shape) != 2 or suspended():
        return None
    forwards = _LOGSUMEXP.get((x.dtype, shape[1]))
    forward = forwards.select(shape[0]) if forwards is not None else None
    if forward is None:
        return None
    try:
        return forward(x, [shape[0], 0, shape[0], 0], ())
    except Exception as error:  # as everywhere in dispatch: say it once, let stock answer
        assert forwards is not None
        forwards.drop(forward, error)
        return None
