"""What a C++ compiler says about itself, asked once and then remembered in a file."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ISAS = ("avx512", "avx2", "neon", "portable")
"""Vector instruction sets that the kernel templates know, best first on one kind of processor."""

_MACROS = {
    "avx512": {"__AVX512F__", "__AVX512BW__", "__AVX512DQ__", "__AVX512VL__"},
    "avx2": {"__AVX2__", "__FMA__", "__F16C__"},
    "neon": {"__ARM_NEON", "__aarch64__"},
}
_NATIVE = (("-march=native",), ("-mcpu=native",), ())
_SECONDS = 30
_SYSCTL = ("machdep.cpu.brand_string", "machdep.cpu.features", "machdep.cpu.leaf7_features", "hw.optional")


@dataclass(frozen=True)
class Probe:
    """One compiler's answers.

    Attributes:
        version: first line of ``--version``.
        native: the flags that make it use all of this processor.
        isa: the entry of :data:`ISAS` that it then compiles for.
    """

    version: str
    native: tuple[str, ...]
    isa: str


def probe_compiler(command: tuple[str, ...], notes: Path) -> Probe | None:
    """Asks the compiler; while its files stay the same, later answers come from the file ``notes``.

    Returns:
        The answers, or ``None`` when ``command`` does not run as a C++20 compiler.
    """
    key = hashlib.sha256(repr((command, sorted(_identity(command)), sorted(cpu_features()))).encode()).hexdigest()
    known = _parse(_load(notes).get(key))
    if known is not None:
        return known
    version = _output([*command, "--version"])
    if version is None:
        return None
    for native in _NATIVE:
        listing = _output([*command, "-std=c++20", *native, "-dM", "-E", "-x", "c++", os.devnull])
        if listing is None:
            continue
        defined = {line.split()[1] for line in listing.splitlines() if line.startswith("#define ")}
        isa = next((name for name, needed in _MACROS.items() if needed <= defined), "portable")
        probe = Probe(version.partition("\n")[0], native, isa)
        _remember(notes, key, probe)
        return probe
    return None


def cpu_features() -> frozenset[str]:
    """Names of the processor's features, from the system; empty when it does not tell."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            label, _, value = line.partition(":")
            if label.strip() in ("flags", "Features"):
                return frozenset(value.split())
    if platform.system() == "Darwin":
        listing = (_output(["sysctl", name]) or "" for name in _SYSCTL)
        return frozenset(line for text in listing for line in text.splitlines() if not line.endswith(": 0"))
    return frozenset()


def _output(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None


def _identity(command: tuple[str, ...]) -> Iterator[tuple[str, int, int]]:
    """Path, time and size of every word that is a program: ``ccache g++`` changes with either."""
    for word in command:
        path = shutil.which(word)
        if path:
            stat = Path(path).stat()
            yield os.path.realpath(path), stat.st_mtime_ns, stat.st_size


def _load(notes: Path) -> Mapping[str, object]:
    with suppress(OSError, ValueError):
        content = json.loads(notes.read_text())
        if isinstance(content, dict):
            return content
    return {}


def _parse(entry: object) -> Probe | None:
    match entry:
        case {"version": str(version), "native": [*native], "isa": str(isa)} if isa in ISAS:
            return Probe(version, tuple(str(flag) for flag in native), isa)
    return None


def _remember(notes: Path, key: str, probe: Probe) -> None:
    """Adds an entry. Failing to write it costs one probe at the next start."""
    content = {**_load(notes), key: vars(probe)}
    with suppress(OSError):
        notes.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=notes.parent, prefix=".notes-", delete=False) as stream:
            json.dump(content, stream)
        Path(stream.name).replace(notes)
