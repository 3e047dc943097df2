"""mlx-autoperfect: makes an mlx-lm model faster on the machine it runs on, without changing its answers.

The names below are the public API; importing this package imports nothing else until one is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlx_autoperfect.api import disabled, explain, optimize, restore
    from mlx_autoperfect_cpu.cpu_kernel import cpu_kernel

__version__ = "0.1.0"
__all__ = ["__version__", "cpu_kernel", "disabled", "explain", "optimize", "restore"]

_HOMES = {
    "cpu_kernel": "mlx_autoperfect_cpu.cpu_kernel",
    "disabled": "mlx_autoperfect.api",
    "explain": "mlx_autoperfect.api",
    "optimize": "mlx_autoperfect.api",
    "restore": "mlx_autoperfect.api",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(home), name)
