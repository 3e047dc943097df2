"""Speed of the CPU templates alone, without MLX: matrix-vector products at decode, matrix products, attention.

    python benchmarks/cpu_templates.py [--isa avx512] [--rounds 20] [--layers 30]

Prints GB/s beside the read bandwidth that this machine shows for the same number of bytes, GFLOP/s beside the peak of a
loop of fused multiply-adds, and microseconds. Shapes are those of SmolLM2-135M: 4-bit groups of 32, an 8-bit head.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "cpu"))
import template_harness as harness
import template_sources as sources

F16 = np.dtype(np.float16)
HIDDEN, INNER, KV, VOCABULARY, GROUP = 576, 1536, 192, 49152, 32

PROBE = """
#include "vec.h"
using namespace ap;
struct Read {
  static int64_t scratch_bytes(const int64_t*) { return 64; }
  static void run(const ap_ctx& c) {
    const int64_t words = c.in[0].shape[0], first = words / 64 * c.tid / c.nthreads * 64;
    const int64_t last = words / 64 * (c.tid + 1) / c.nthreads * 64;
    const uint32_t* p = static_cast<const uint32_t*>(c.in[0].data);
    VI acc[4] = {VI(0u), VI(0u), VI(0u), VI(0u)};
    for (int64_t i = first; i + 4 * V::W <= last; i += 4 * V::W)
      for (int j = 0; j < 4; ++j) prefetch(p + i + j * V::W + 1024), acc[j] = acc[j] | load_words(p + i + j * V::W);
    static_cast<uint32_t*>(c.out[0].data)[c.tid] = uint32_t(((acc[0] | acc[1]) | (acc[2] | acc[3])).v[0]);
  }
};
struct Fma {
  static int64_t scratch_bytes(const int64_t*) { return 64; }
  static void run(const ap_ctx& c) {
    V acc[12];
    for (int i = 0; i < 12; ++i) acc[i] = V(float(i));
    for (int64_t k = 0; k < c.symbols[0]; ++k)
      for (int i = 0; i < 12; ++i) acc[i] = fma(acc[i], V(0.999f), V(1e-3f));
    for (int i = 1; i < 12; ++i) acc[0] += acc[i];
    static_cast<float*>(c.out[0].data)[c.tid] = hsum(acc[0]) * float(V::W);
  }
};
AP_EXPORT int32_t lanes() { return V::W; }
AP_KERNEL(read_probe, Read)
AP_KERNEL(fma_probe, Fma)
"""


def kernels(anchor: str) -> str:
    """The four linear kernels of a decoder layer and the output head."""
    template, schedules = sources.ANCHORS[anchor]
    four, eight = "Affine<4, 32, f16>", "Affine<8, 32, f16>"
    jobs = {
        "qkv": ("true", [f"Residual<{four}, f16, {2 + 4 * i}, {5 + 4 * i}, {i}>" for i in range(3)]),
        "o": ("false", [f"Residual<{four}, f16, 2, 1, 0>"]),
        "gate_up": ("true", [f"Gated<{four}, f16, 2, 5, 0>"]),
        "head": ("true", [f"Residual<{eight}, f16, 2, 1, 0>"]),
    }
    return f'#include "{anchor}.h"\n{sources.LINEAR}' + "".join(
        f"AP_KERNEL({name}, {template}<Rows<f16, {norm}>, {schedules[0]}, {', '.join(parts)}>)\n"
        for name, (norm, parts) in jobs.items()
    )


def weight(rng: np.random.Generator, n: int, k: int, bits: int = 4) -> tuple[harness.Array, ...]:
    """A random affine matrix: words, scales, biases."""
    words = rng.integers(0, 2**32, (n, k * bits // 32), dtype=np.uint32)
    scales, biases = (rng.uniform(-0.01, 0.01, (n, k // GROUP)).astype(F16) for _ in range(2))
    return words, scales, biases


def model(library: ctypes.CDLL, rows: int, layers: int, head: bool) -> list[harness.Call]:
    """The linear kernels of one pass over the model."""
    rng = np.random.default_rng(0)

    def activations(width: int) -> harness.Array:
        return rng.standard_normal((rows, width)).astype(F16)

    def call(name: str, inputs: Sequence[harness.Array], widths: Sequence[int], k: int) -> harness.Call:
        outputs = tuple(((rows, width), F16) for width in widths)
        return harness.Call(library, name, tuple(inputs), outputs, (rows,), (rows, k))

    calls = []
    for _ in range(layers):
        x, inner = activations(HIDDEN), activations(INNER)
        widths = (HIDDEN, KV, KV)
        qkv = [part for n in widths for part in (*weight(rng, n, HIDDEN), activations(n))]
        calls += [
            call("qkv", (x, x, *qkv), widths, HIDDEN),
            call("o", (x, x, *weight(rng, HIDDEN, HIDDEN)), (HIDDEN,), HIDDEN),
            call("gate_up", (x, x, *weight(rng, INNER, HIDDEN), *weight(rng, INNER, HIDDEN)), (INNER,), HIDDEN),
            call("o", (inner, x, *weight(rng, HIDDEN, INNER)), (HIDDEN,), INNER),
        ]
    if head:
        operands = (activations(HIDDEN), activations(VOCABULARY), *weight(rng, VOCABULARY, HIDDEN, 8))
        calls.append(call("head", operands, (VOCABULARY,), HIDDEN))
    return calls


def attention(library: ctypes.CDLL, length: int, total: int) -> harness.Call:
    """Nine query heads over three key heads, in a cache with room to spare."""
    rng = np.random.default_rng(1)
    q = rng.standard_normal((1, 9, length, 64)).astype(F16)
    k, v = (rng.standard_normal((1, 3, total + 256, 64)).astype(F16)[:, :, :total] for _ in range(2))
    shape = (((1, 9, length, 64), F16),)
    return harness.Call(library, "attention_f16_64", (q, k, v), shape, (length,), (1, 9, 3, length, total))


def best_times(driver: harness.Driver, calls: Sequence[harness.Call], threads: int, rounds: int) -> list[float]:
    """The shortest time of each call in seconds, over several teams."""
    return [min(times) for times in zip(*(driver.run(calls, threads, 5)[1] for _ in range(rounds)), strict=True)]


def report(isa: harness.Isa, folder: Path, rounds: int, layers: int, thread_counts: Sequence[int]) -> None:
    """Builds everything and prints the table."""
    texts = {"probe": PROBE, "matvec": kernels("matvec"), "matmul": kernels("matmul")}
    texts["attention"] = sources.attention_source("f16_64")
    library = {name: ctypes.CDLL(str(path)) for name, path in harness.build_all(folder, texts, isa).items()}
    driver = harness.Driver(folder)
    decode = model(library["matvec"], 1, layers, head=True)
    weights = sum(array.nbytes for call in decode for array in call.inputs if array.nbytes > 4096)
    flat = np.ones(weights // 4, np.uint32)
    names = ("qkv", "o", "gate_up", "down")
    for threads in thread_counts:
        sink = (((threads * 16,), np.dtype(np.uint32)),)
        probe = harness.Call(library["probe"], "read_probe", (flat,), sink, (0,), ())
        loop = harness.Call(library["probe"], "fma_probe", (), sink, (1_000_000,), ())
        read = weights / best_times(driver, [probe], threads, rounds)[0] / 1e9
        flops = threads * 24e6 * library["probe"].lanes()
        peak = flops / best_times(driver, [loop], threads, rounds)[0] / 1e9
        times = best_times(driver, decode, threads, rounds)
        total = sum(times)
        print(f"\n{isa.name}, {threads} threads: read {read:.1f} GB/s, peak {peak:.0f} GFLOP/s")
        print(f"  linear kernels: {total * 1e3:.2f} ms, {1 / total:.0f} tokens/s, {weights / total / 1e9:.1f} GB/s")
        for i, name in enumerate(names):
            part = sum(times[i:-1:4])
            size = sum(a.nbytes for call in decode[i:-1:4] for a in call.inputs if a.nbytes > 4096)
            print(f"    {name:8} {part * 1e3:7.3f} ms {size / part / 1e9:7.1f} GB/s")
        head = sum(array.nbytes for array in decode[-1].inputs[2:])
        print(f"    {'head':8} {times[-1] * 1e3:7.3f} ms {head / times[-1] / 1e9:7.1f} GB/s")
        for rows in (17, 128, 512):
            shapes = ((HIDDEN, HIDDEN + 2 * KV), (HIDDEN, HIDDEN), (HIDDEN, 2 * INNER), (INNER, HIDDEN))
            spent = best_times(driver, model(library["matmul"], rows, 1, head=False), threads, rounds)
            speeds = (2 * rows * k * n / t / 1e9 for (k, n), t in zip(shapes, spent, strict=True))
            parts = ", ".join(f"{name} {speed:.0f}" for name, speed in zip(names, speeds, strict=True))
            print(f"  matmul, {rows} rows, GFLOP/s: {parts}")
        for length, keys in ((1, 128), (1, 2048), (1, 16384), (128, 128), (512, 512)):
            spent = best_times(driver, [attention(library["attention"], length, keys)], threads, rounds)
            print(f"  attention, {length} queries, {keys} keys: {spent[0] * 1e6:.1f} us")


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    isas = {isa.name: isa for isa in harness.usable_isas()}
    parser.add_argument("--isa", choices=sorted(isas), default=next(iter(isas)))
    parser.add_argument("--rounds", type=int, default=20, help="teams per measurement, five passes each")
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--threads", type=int, nargs="*", default=sorted({1, os.cpu_count() or 1}))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report(isas[arguments.isa], Path(folder), arguments.rounds, arguments.layers, arguments.threads)


if __name__ == "__main__":
    main()
