"""Every option and environment variable, once.

``TABLE`` is the single list: the parser, the error texts, ``doctor`` and ``docs/settings.md`` are
made from it. Nothing else in the package reads ``os.environ`` for a setting of ours.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_autoperfect.errors import SettingsError

_OFF = frozenset({"0", "off", "false", "no"})
_ON = frozenset({"1", "on", "true", "yes"})


def _flag(text: str) -> bool:
    lowered = text.strip().lower()
    if lowered in _ON:
        return True
    if lowered in _OFF:
        return False
    raise ValueError("1 or 0")


def _optional_flag(text: str) -> bool | None:
    return _flag(text) if text.strip() else None


def _whole(minimum: int, maximum: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = minimum - 1
        if not minimum <= value <= maximum:
            raise ValueError(f"a whole number from {minimum} to {maximum}")
        return value

    return parse


def _default_cache_dir() -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("mlx-autoperfect", appauthor=False)


@dataclass(frozen=True)
class Variable:
    """One environment variable: its name, the field it fills, how to read it, what it does."""

    name: str
    field: str
    parse: Callable[[str], Any]
    help: str


TABLE: tuple[Variable, ...] = (
    Variable(
        "AUTOPERFECT", "enabled", _optional_flag, "1 switches on, 0 switches off, everywhere; unset: the flag decides"
    ),
    Variable("AUTOPERFECT_BACKEND", "backend", str, "name of the backend to use; empty: the best one available"),
    Variable("AUTOPERFECT_CACHE_DIR", "cache_dir", Path, "where compiled kernels and verdicts are kept"),
    Variable(
        "AUTOPERFECT_DEBUG",
        "debug",
        _whole(0, 6),
        "1 decisions, 2 timings, 3 graphs, 4 KernelIR, 5 sources, 6 compiler output",
    ),
    Variable(
        "AUTOPERFECT_FUEL",
        "fuel",
        _whole(0, 1_000_000_000),
        "stop after this many fusions; finds a bad one by bisection",
    ),
    Variable(
        "AUTOPERFECT_THREADS",
        "threads",
        _whole(1, 4096),
        "threads for CPU kernels; default: the cores this process may use",
    ),
)


@dataclass(frozen=True)
class Settings:
    """The settings of one run.

    Attributes:
        enabled: ``True``/``False`` when the environment decides, ``None`` when the flag does.
        backend: backend name, or empty for the best available.
        cache_dir: folder for compiled kernels, verdicts and fetched models.
        debug: level of the debug ladder, 0 to 6.
        fuel: maximum number of fusions, or ``None`` for no limit.
        threads: threads for CPU kernels, or ``None`` for one per usable core.
    """

    enabled: bool | None = None
    backend: str = ""
    cache_dir: Path = Path()
    debug: int = 0
    fuel: int | None = None
    threads: int | None = None

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Reads the environment.

        Raises:
            SettingsError: a variable has a value that cannot be read; names it and what it takes.
        """
        env = os.environ if environ is None else environ
        values: dict[str, Any] = {}
        for variable in TABLE:
            text = env.get(variable.name, "")
            if not text:
                continue
            try:
                values[variable.field] = variable.parse(text)
            except ValueError as error:
                raise SettingsError(f"{variable.name} takes {error}, not {text!r}; correct it or unset it") from None
        values.setdefault("cache_dir", _default_cache_dir())
        return cls(**values)
