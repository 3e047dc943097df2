"""The C++ compiler of this machine: which one, its flags, and what its output can run on."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mlx_autoperfect.errors import Failure, Reason, Stage
from mlx_autoperfect.settings import Settings
from mlx_autoperfect_cpu.headers import find_headers
from mlx_autoperfect_cpu.probe import ISAS, Probe, cpu_features, probe_compiler

__all__ = ["ISAS", "Toolchain", "find_toolchain"]

# Not -ffast-math: kernels must keep NaN and infinity.
_COMMON = ("-O3", "-std=c++20", "-fPIC", "-shared", "-fopenmp-simd", "-fno-math-errno", "-ffp-contract=fast")
_WIDE = ("-mprefer-vector-width=512",)
_PORTABLE = ("-DAP_ISA_PORTABLE",)
_COMPILERS = ("g++", "clang++", "c++")


@dataclass(frozen=True)
class Toolchain:
    """One compiler with its flags; equal fingerprints give interchangeable binaries.

    Attributes:
        command: the compiler as a command (more than one word for ``ccache g++``).
        version: first line of what ``--version`` prints.
        flags: everything but sources, include folders and output.
        isa: the entry of :data:`ISAS` that the flags enable.
        cpu_features: names of the processor's features as the system reports them.
    """

    command: tuple[str, ...]
    version: str
    flags: tuple[str, ...]
    isa: str
    cpu_features: frozenset[str]

    @property
    def compiler(self) -> str:
        """The compiler as a person would type it."""
        return shlex.join(self.command)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the compiler's identity, its flags and the processor's features."""
        parts = (self.command, self.version, self.flags, sorted(self.cpu_features))
        return hashlib.sha256(repr(parts).encode()).hexdigest()


def find_toolchain(isa: str | None = None, *, cache_dir: Path | None = None) -> Toolchain | Failure:
    """Finds the compiler: ``$CXX`` when set, else the first of g++, clang++ and c++ that works.

    Args:
        isa: an entry of :data:`ISAS` to restrict the flags to; ``None`` for the best this CPU has.
        cache_dir: folder for what was learnt about the compiler; default: the settings' folder.

    Returns:
        The toolchain, or a failure ``NO_COMPILER``, ``NO_HEADERS`` (Python, MLX or nanobind) or
        ``NO_BACKEND`` (this machine cannot run ``isa``).
    """
    notes = (Settings.from_env().cache_dir if cache_dir is None else cache_dir) / "cpu" / "toolchains.json"
    wanted = os.environ.get("CXX", "").strip()
    for name in (wanted,) if wanted else _COMPILERS:
        command = _resolve(name)
        probe = probe_compiler(command, notes) if command else None
        if command and probe:
            return _check_headers() or _assemble(command, probe, isa)
    detail = "no C++ compiler found: install g++ or clang++, or set CXX"
    if wanted:
        detail = f"CXX is {wanted!r}, which does not run as a C++20 compiler: correct or unset it"
    return Failure(Stage.SETUP, Reason.NO_COMPILER, f"{detail}; running stock mlx-lm")


def _resolve(name: str) -> tuple[str, ...] | None:
    try:
        words = shlex.split(name)
    except ValueError:
        return None
    path = shutil.which(words[0]) if words else None
    return (path, *words[1:]) if path else None


def _check_headers() -> Failure | None:
    headers = find_headers()
    return headers if isinstance(headers, Failure) else None


def _assemble(command: tuple[str, ...], probe: Probe, isa: str | None) -> Toolchain | Failure:
    """Adds the flags for the instruction set that was asked for."""
    chosen = probe.isa if isa is None else isa
    if chosen == "portable":
        base = ("-march=x86-64",) if platform.machine() == "x86_64" else ()
        flags = (*base, *_PORTABLE)
    elif chosen == probe.isa:
        flags = (*probe.native, *(_WIDE if chosen == "avx512" else ()))
    elif chosen == "avx2" and probe.isa == "avx512":
        flags = ("-march=x86-64-v3",)
    else:
        detail = f"no {chosen} here: this processor and compiler have {probe.isa}"
        return Failure(Stage.SETUP, Reason.NO_BACKEND, detail)
    return Toolchain(command, probe.version, (*_COMMON, *flags), chosen, cpu_features())
