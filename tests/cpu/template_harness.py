"""Compiles kernels made from the C++ templates with the system's compiler and calls them through ctypes.

No MLX is needed: a small driver runs a list of kernels on a team of threads, as the extension does.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

TEMPLATES = Path(__file__).resolve().parents[2] / "plugins" / "mlx_autoperfect_cpu" / "templates"
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++") or ""
FLAGS = ("-O3", "-std=c++20", "-fPIC", "-shared", "-fno-math-errno", "-ffp-contract=fast", "-pthread")
GUARD_BYTES = 256
GUARD_BYTE = 0xA5

DRIVER = r"""
#include "abi.h"
#include <chrono>
#include <thread>
#include <vector>
struct Step { ap_kernel fn; const ap_array* in; const ap_array* out; const int64_t* symbols; void* scratch; };
static double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}
// Runs the steps in order, `repeats` times, on `threads` threads. best[i] is the shortest time of step i in seconds,
// from its first thread's start to its last thread's end: a thread that is not scheduled cannot hide work of others.
extern "C" void ap_drive(const Step* steps, int32_t count, int32_t threads, int32_t repeats, double* best) {
  std::vector<ap_team> teams(count);
  std::vector<double> start(threads), end(threads);
  ap_team all;
  auto work = [&](int32_t tid) {
    const ap_ctx sync{nullptr, nullptr, nullptr, nullptr, &all, tid, threads};
    for (int32_t r = 0; r < repeats; ++r)
      for (int32_t i = 0; i < count; ++i) {
        teams[i].chunk = 0;
        ap_barrier(&sync);
        const ap_ctx c{steps[i].in, steps[i].out, steps[i].symbols, steps[i].scratch, &teams[i], tid, threads};
        start[tid] = seconds();
        steps[i].fn(&c);
        end[tid] = seconds();
        ap_barrier(&sync);
        if (tid) continue;
        double first = start[0], last = end[0];
        for (int32_t t = 1; t < threads; ++t) {
          first = first < start[t] ? first : start[t];
          last = last > end[t] ? last : end[t];
        }
        if (r == 0 || last - first < best[i]) best[i] = last - first;
      }
  };
  std::vector<std::thread> team;
  for (int32_t tid = 1; tid < threads; ++tid) team.emplace_back(work, tid);
  work(0);
  for (auto& thread : team) thread.join();
}
"""


@dataclass(frozen=True)
class Isa:
    """An instruction set to compile for: its name, its flags, the CPU features that running it needs."""

    name: str
    flags: tuple[str, ...]
    needs: frozenset[str] = frozenset()


_AVX2 = frozenset({"avx2", "fma", "f16c"})
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
_V4 = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512")
_V3 = ("-mavx2", "-mfma", "-mf16c")
ISAS = (
    Isa("avx512", _V3 + _V4, _AVX512),
    Isa("avx2", _V3, _AVX2),
    Isa("portable", ("-DAP_ISA_PORTABLE",)),
)


def cpu_features() -> frozenset[str]:
    """The feature names in Linux's /proc/cpuinfo; empty elsewhere."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return frozenset(word for line in lines if line.startswith("flags") for word in line.split())


def usable_isas() -> tuple[Isa, ...]:
    """The instruction sets that this machine can run; the portable one is always among them."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return (Isa("native", ("-march=native",)), ISAS[-1])
    return tuple(isa for isa in ISAS if isa.needs <= cpu_features())


def build(folder: Path, name: str, source: str, isa: Isa, extra: Sequence[str] = ()) -> Path:
    """Compiles one source text to a shared library in ``folder``.

    Raises:
        RuntimeError: the compiler refused; carries its message.
    """
    text, library = folder / f"{name}.cpp", folder / f"{name}.so"
    text.write_text(source)
    command = [COMPILER, *FLAGS, *isa.flags, *extra, f"-I{TEMPLATES}", str(text), "-o", str(library)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{name}.cpp does not compile for {isa.name}: {result.stderr[:4000]}")
    return library


def build_all(folder: Path, sources: dict[str, str], isa: Isa) -> dict[str, Path]:
    """Compiles several sources, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        paths = pool.map(lambda item: build(folder, item[0], item[1], isa), sources.items())
        return dict(zip(sources, paths, strict=True))


class _ApArray(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("shape", ctypes.POINTER(ctypes.c_int32)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("ndim", ctypes.c_int64),
    )


class _Step(ctypes.Structure):
    _fields_ = (
        ("fn", ctypes.c_void_p),
        ("inputs", ctypes.POINTER(_ApArray)),
        ("outputs", ctypes.POINTER(_ApArray)),
        ("symbols", ctypes.POINTER(ctypes.c_int64)),
        ("scratch", ctypes.c_void_p),
    )


def _describe(arrays: Sequence[Array]) -> tuple[ctypes.Array[_ApArray], list[object]]:
    keep: list[object] = [arrays]
    table = (_ApArray * max(1, len(arrays)))()
    for entry, array in zip(table, arrays, strict=False):
        shape = (ctypes.c_int32 * max(1, array.ndim))(*array.shape)
        strides = (ctypes.c_int64 * max(1, array.ndim))(*(s // array.itemsize for s in array.strides))
        entry.data, entry.shape, entry.strides, entry.ndim = array.ctypes.data, shape, strides, array.ndim
        keep += [shape, strides]
    return table, keep


class GuardedBytes:
    """Aligned memory between two guard zones, filled with a pattern."""

    def __init__(self, size: int) -> None:
        self.raw = np.full(size + 2 * GUARD_BYTES + 64, GUARD_BYTE, np.uint8)
        start = -(self.raw.ctypes.data + GUARD_BYTES) % 64 + GUARD_BYTES
        self.start, self.size = start, size
        self.body = self.raw[start : start + size]

    def intact(self) -> bool:
        """Whether nothing was written outside the body."""
        end = self.start + self.size
        return bool((self.raw[: self.start] == GUARD_BYTE).all() and (self.raw[end:] == GUARD_BYTE).all())


@dataclass(frozen=True)
class Call:
    """One kernel with its operands.

    Attributes:
        library: the loaded shared library.
        name: the kernel's name in it.
        inputs: operands; strided views are passed as they are.
        outputs: shape and dtype of each output.
        symbols: values of the symbolic sizes.
        sizes: what ``<name>_scratch`` takes; its last entry, the thread count, is appended here.
    """

    library: ctypes.CDLL
    name: str
    inputs: tuple[Array, ...]
    outputs: tuple[tuple[tuple[int, ...], np.dtype[np.generic]], ...]
    symbols: tuple[int, ...]
    sizes: tuple[int, ...]


class Driver:
    """Runs kernels on a team of threads."""

    def __init__(self, folder: Path) -> None:
        self.library = ctypes.CDLL(str(build(folder, "driver", DRIVER, ISAS[-1])))

    def run(self, calls: Sequence[Call], threads: int, repeats: int = 1) -> tuple[list[list[Array]], list[float]]:
        """Runs the calls in order; returns the outputs of each and the shortest time of each in seconds.

        Raises:
            AssertionError: a kernel wrote outside an output or its scratch.
        """
        steps = (_Step * len(calls))()
        keep: list[object] = []
        guards: list[GuardedBytes] = []
        results: list[list[Array]] = []
        for step, call in zip(steps, calls, strict=True):
            scratch_bytes = getattr(call.library, f"{call.name}_scratch")
            scratch_bytes.restype = ctypes.c_int64
            sizes = (ctypes.c_int64 * (len(call.sizes) + 1))(*call.sizes, threads)
            scratch = GuardedBytes(scratch_bytes(sizes))
            bodies = [GuardedBytes(int(np.prod(shape)) * dtype.itemsize) for shape, dtype in call.outputs]
            outputs = [
                body.body.view(dtype).reshape(shape) for body, (shape, dtype) in zip(bodies, call.outputs, strict=True)
            ]
            table_in, keep_in = _describe(call.inputs)
            table_out, keep_out = _describe(outputs)
            symbols = (ctypes.c_int64 * max(1, len(call.symbols)))(*call.symbols)
            step.fn = ctypes.cast(getattr(call.library, call.name), ctypes.c_void_p)
            step.inputs, step.outputs, step.symbols = table_in, table_out, symbols
            step.scratch = scratch.raw.ctypes.data + scratch.start
            keep += [table_in, table_out, symbols, keep_in, keep_out]
            guards += [scratch, *bodies]
            results.append(outputs)
        best = (ctypes.c_double * len(calls))()
        self.library.ap_drive(steps, len(calls), threads, repeats, best)
        assert all(guard.intact() for guard in guards), "a kernel wrote outside its buffers"
        return results, list(best)


def to_bf16(x: Array) -> NDArray[np.uint16]:
    """The bits of ``x`` rounded to bfloat16, to nearest even. ``x`` is finite."""
    u = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(bits: Array) -> NDArray[np.float32]:
    """The float32 values of bfloat16 bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
