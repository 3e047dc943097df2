"""What this machine is: processor, cores, memory, versions, and how fast it reads memory."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mlx_autoperfect.errors import AutoperfectError

PACKAGES = ("mlx", "mlx-lm", "mlx-autoperfect", "numpy", "nanobind")
_VECTOR_FEATURES = (
    *("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_bf16", "avx512_fp16", "avx512_vnni", "avx_vnni"),
    *("amx_int8", "neon", "asimd", "asimddp", "asimdhp", "bf16", "i8mm", "sve"),
)  # fmt: skip
MIB = 1 << 20
# About the weights of a small model, and more than any cache holds.
PROBE_SIZES = (128 * MIB, 1024 * MIB)
_CHUNK = MIB
# Several vector registers of sums, so that additions do not wait for each other.
_LANES = 64
_SECONDS_PER_SIZE = 0.2


@dataclass(frozen=True)
class Device:
    """This machine.

    Attributes:
        cpu: the processor's name.
        cores: cores that this process may use.
        features: vector instruction sets, of those that matter to kernels.
        memory: bytes of memory, 0 where the system does not tell.
        system: operating system and machine type.
        python: Python's version.
        versions: of :data:`PACKAGES`, those that are installed.
    """

    cpu: str
    cores: int
    features: tuple[str, ...]
    memory: int
    system: str
    python: str
    versions: dict[str, str]


@dataclass(frozen=True)
class Bandwidth:
    """A measured reading speed.

    Attributes:
        size: bytes that were read over and over.
        gb_s: gigabytes (10**9 bytes) per second, the best of several passes.
        method: what read them: ``compiled`` or ``numpy``.
    """

    size: int
    gb_s: float
    method: str


def describe() -> Device:
    """What can be said about this machine without measuring."""
    facts = _cpu_facts()
    found = {flag.lower() for flag in facts.get("flags", facts.get("Features", "")).split()}
    return Device(
        cpu=facts.get("model name") or platform.processor() or platform.machine(),
        cores=usable_cores(),
        features=tuple(name for name in _VECTOR_FEATURES if name in found),
        memory=_memory(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        versions={name: text for name in PACKAGES if (text := _version(name))},
    )


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def read_bandwidth(threads: int, size: int) -> Bandwidth:
    """How fast ``threads`` threads read ``size`` bytes that nothing else is using; about half a second.

    Uses a compiled kernel where kernels can be compiled, else NumPy, which may be slower than the memory.
    """
    return probe_bandwidth(threads, (size,))[0]


def probe_bandwidth(threads: int, sizes: tuple[int, ...] = PROBE_SIZES) -> tuple[Bandwidth, ...]:
    """:func:`read_bandwidth` at several sizes over one buffer; sizes above an eighth of the memory are left out.

    Smaller sizes may fit a cache that other machines or programs share, and then show that cache's speed.
    """
    limit = _memory() // 8 or min(sizes)
    usable = tuple(size for size in sizes if size <= limit) or (min(sizes),)
    try:
        return _read_compiled(threads, usable)
    except (AutoperfectError, ImportError):
        return _read_with_numpy(threads, usable)


def _read_compiled(threads: int, sizes: tuple[int, ...]) -> tuple[Bandwidth, ...]:
    import mlx.core as mx

    from mlx_autoperfect import cpu_kernel

    read = cpu_kernel(
        name="read_bandwidth",
        input_names=["data"],
        output_names=["sums"],
        source=f"""
            const uint32_t* from = data + int64_t(thread_position_in_grid.x) * {_CHUNK // 4};
            uint32_t lanes[{_LANES}] = {{}};
            for (int i = 0; i < {_CHUNK // 4}; i += {_LANES})
                for (int j = 0; j < {_LANES}; ++j) lanes[j] += from[i + j];
            uint32_t sum = 0;
            for (uint32_t lane : lanes) sum += lane;
            sums[thread_position_in_grid.x] = sum;
        """,
    )
    data = mx.full((max(sizes) // 4,), 1, mx.uint32, stream=mx.cpu)
    mx.eval(data)

    def run(data: mx.array, size: int) -> None:
        count = size // _CHUNK
        shapes, dtypes, grid = [(count,)], [mx.uint32], (count, 1, 1)
        mx.eval(read(inputs=[data], output_shapes=shapes, output_dtypes=dtypes, grid=grid, threads=threads))

    found = tuple(_bandwidth(size, partial(run, data, size), "compiled") for size in sizes)
    del data
    mx.clear_cache()
    return found


def _read_with_numpy(threads: int, sizes: tuple[int, ...]) -> tuple[Bandwidth, ...]:
    import numpy as np

    data = np.ones(max(sizes) // 8, np.uint64)

    def run(size: int) -> None:
        list(pool.map(np.bitwise_or.reduce, np.array_split(data[: size // 8], threads)))

    with ThreadPoolExecutor(threads, thread_name_prefix="autoperfect-probe") as pool:
        return tuple(_bandwidth(size, partial(run, size), "numpy") for size in sizes)


def _bandwidth(size: int, run: Callable[[], None], method: str) -> Bandwidth:
    return Bandwidth(size, size / _best(run) / 1e9, method)


def _best(run: Callable[[], None]) -> float:
    """Seconds of the fastest pass; the first one warms up."""
    run()
    best, end = float("inf"), time.perf_counter() + _SECONDS_PER_SIZE
    while time.perf_counter() < end:
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best


def _cpu_facts() -> dict[str, str]:
    """The first processor's entry in Linux's list; empty elsewhere."""
    with suppress(OSError):
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
        pairs = (line.partition(":") for line in first.splitlines())
        return {label.strip(): value.strip() for label, _, value in pairs}
    return {}


def _memory() -> int:
    with suppress(ValueError, OSError, AttributeError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 0


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
