"""The normaliser of mlx-lm's sampling step, by a proven kernel.

``mlx_lm.generate`` computes ``logits - mx.logsumexp(logits, keepdims=True)`` for every token; on a CPU
that one reduction costs as much as several layers. The module gets a stand-in for its global ``mx``
that differs in this function alone, as it has one for ``argparse``.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

_MODULE = "mlx_lm.generate"


class _Mlx(ModuleType):
    """``mlx.core`` with another ``logsumexp``; everything else is looked up in the real module."""

    def __init__(self, real: Any) -> None:
        super().__init__(real.__name__)
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def logsumexp(self, a: Any, axis: Any = None, keepdims: bool = False, **kwargs: Any) -> Any:
        """As ``mx.logsumexp``; rows of logits that keep their axes go to the kernel."""
        from mlx_autoperfect.runtime.functions import logsumexp

        rows = axis in (-1, (-1,), [-1]) or (axis is None and a.ndim == 2 and a.shape[0] == 1)
        result = logsumexp(a) if keepdims and rows and not kwargs else None
        return self._real.logsumexp(a, axis=axis, keepdims=keepdims, **kwargs) if result is None else result


def attach() -> None:
    """Gives ``mlx_lm.generate`` the stand-in, once."""
    module: Any = sys.modules.get(_MODULE)
    if module is not None and not isinstance(module.mx, _Mlx):
        module.mx = _Mlx(module.mx)
