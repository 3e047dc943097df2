"""The plugin's door: offers the CPU backend to the core."""

from __future__ import annotations

from mlx_autoperfect.hookspecs import Backend, hookimpl
from mlx_autoperfect_cpu.backend import CpuBackend

_BACKEND = CpuBackend()


@hookimpl
def autoperfect_backend() -> Backend | None:
    """The backend; whether this machine can use it is its ``status``."""
    return _BACKEND
