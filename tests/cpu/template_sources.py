"""The C++ that test_templates.py compiles: small kernels of the kind that code generation writes."""

from __future__ import annotations

CTYPES = ("f16", "bf16", "f32")
AFFINE = tuple((bits, group, scale) for bits in (4, 8) for group in (32, 64, 128) for scale in CTYPES)
UNARY = ("vexp", "vlog", "vtanh", "verf", "vsigmoid", "vrsqrt", "vsqrt", "vabs")

MATH = (
    """
#include "vmath.h"
using namespace ap;
template <class A, class B, class F> static void each(const A* x, B* y, int64_t n, F f) {
  for (int64_t i = 0; i < n; i += V::W) {
    const int valid = int(min64(V::W, n - i));
    store(y + i, f(load(x + i, valid)), valid);
  }
}
AP_EXPORT int32_t lanes() { return V::W; }
AP_EXPORT void sums(const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i + V::W <= n; i += V::W) y[2 * i] = hsum(load(x + i)), y[2 * i + 1] = hmax(load(x + i));
}
AP_EXPORT void rows(const float* x, float* transposed, float* reduced, float* parted) {
  V t[V::W], r[V::W], in[8], out[8];
  for (int i = 0; i < V::W; ++i) t[i] = r[i] = load(x + i * V::W);
  transpose(t);
  for (int i = 0; i < V::W; ++i) store(transposed + i * V::W, t[i]);
  store(reduced, reduce_rows(r));
  for (int i = 0; i < 8; ++i) in[i] = load(x + i * V::W);
  deinterleave<8>(in, out);
  for (int i = 0; i < 8; ++i) store(parted + i * V::W, out[i]);
}
AP_EXPORT void binary(const float* x, const float* y, float* out, int64_t n) {
  for (int64_t i = 0; i < n; i += V::W) {
    const V a = load(x + i), b = load(y + i);
    store(out + i, vmin(a, b)), store(out + n + i, vmax(a, b));
    store(out + 2 * n + i, select(lt(a, b), V(1.f), V(0.f)) + select(gt(a, b), V(2.f), V(0.f)) +
                               select(ge(a, b), V(4.f), V(0.f)) + select(eq(a, b), V(8.f), V(0.f)));
    store(out + 3 * n + i, fma(a, b, -a));
  }
}
"""
    + "".join(
        f"AP_EXPORT void u_{name}(const float* x, float* y, int64_t n) "
        f"{{ each(x, y, n, [](V a) {{ return {name}(a); }}); }}\n"
        for name in UNARY
    )
    + "".join(
        f"AP_EXPORT void c_{a}_{b}(const {a}* x, {b}* y, int64_t n) {{ each(x, y, n, [](V v) {{ return v; }}); }}\n"
        f"AP_EXPORT void s_{a}_{b}(const {a}* x, {b}* y, int64_t n) "
        f"{{ for (int64_t i = 0; i < n; ++i) y[i] = from_float<{b}>(to_float(x[i])); }}\n"
        for a in CTYPES
        for b in CTYPES
    )
)

LINEAR = """
using namespace ap;
template <class T, bool Norm> struct Rows {
  static inline void row(const ap_ctx& c, int64_t m, int64_t K, float* dst) {
    const T* x = static_cast<const T*>(c.in[0].data) + m * K;
    V square(0.f);
    for (int64_t k = 0; k < K; k += V::W) {
      const V v = load(x + k, int(min64(V::W, K - k)));
      store(dst + k, v);
      square = fma(v, v, square);
    }
    if (!Norm) return;
    const V factor = vrsqrt(V(hsum(square) / float(K) + 1e-5f));
    for (int64_t k = 0; k < K; k += V::W) store(dst + k, load(dst + k) * factor);
  }
};
// One matrix; adds the vector c.in[1].
template <class F, class T> struct Biased {
  using Format = F;
  using Out = T;
  static constexpr int kWeights[] = {2}, kOut = 0;
  static inline V elem(const ap_ctx& c, int64_t, int64_t n, int64_t, int valid, const V* acc) {
    return acc[0] + load(static_cast<const float*>(c.in[1].data) + n, valid);
  }
};
// Two matrices.
template <class F, class T, int A, int B, int O> struct Gated {
  using Format = F;
  using Out = T;
  static constexpr int kWeights[] = {A, B}, kOut = O;
  static inline V elem(const ap_ctx&, int64_t, int64_t, int64_t, int, const V* acc) {
    return acc[0] * vsigmoid(acc[0]) * acc[1];
  }
};
// One matrix; adds the residual c.in[R].
template <class F, class T, int A, int R, int O> struct Residual {
  using Format = F;
  using Out = T;
  static constexpr int kWeights[] = {A}, kOut = O;
  static inline V elem(const ap_ctx& c, int64_t m, int64_t n, int64_t N, int valid, const V* acc) {
    return acc[0] + load(static_cast<const T*>(c.in[R].data) + m * N + n, valid);
  }
};
"""

# header, template, schedules that are tried besides the default one
ANCHORS = {
    "matvec": ("MatVec", ("MatVecSchedule<>", "MatVecSchedule<1, 1, 1, 0>", "MatVecSchedule<4, 2, 16, 512>")),
    "matmul": ("MatMul", ("MatMulSchedule<>", "MatMulSchedule<128, 48>")),
}


def format_name(kind: str, scale: str) -> str:
    """A readable kernel-name part for a format text such as ``Affine<4, 32, f16>``."""
    return "".join(ch if ch.isalnum() else "_" for ch in kind) + scale


def linear_source(anchor: str, formats: tuple[tuple[str, str], ...]) -> str:
    """One kernel per format: a plain row times one matrix plus a vector."""
    template, schedules = ANCHORS[anchor]
    kernels = "".join(
        f"AP_KERNEL({format_name(kind, ctype)}, {template}<Rows<{ctype}, false>, {schedules[0]}, "
        f"Biased<{kind}, {ctype}>>)\n"
        for kind, ctype in formats
    )
    return f'#include "{anchor}.h"\n{LINEAR}{kernels}'


def jobs_source(anchor: str) -> str:
    """Several jobs of several formats and widths behind a norm, under each schedule."""
    template, schedules = ANCHORS[anchor]
    a4, a8, dense = "Affine<4, 32, f16>", "Affine<8, 64, f16>", "Dense<bf16>"
    jobs = f"Gated<{a4}, f16, 2, 5, 0>, Residual<{a8}, f16, 8, 1, 1>, Residual<{dense}, f16, 11, 12, 2>"
    kernels = "".join(
        f"AP_KERNEL(jobs{i}, {template}<Rows<f16, true>, {schedule}, {jobs}>)\n" for i, schedule in enumerate(schedules)
    )
    return f'#include "{anchor}.h"\n{LINEAR}{kernels}'


ROPE = """
#include "rowmap.h"
using namespace ap;
template <class T, int I, bool Traditional, bool Freqs> struct Rotate_ {
  static inline int64_t heads(const ap_ctx& c) { return c.in[I].shape[1]; }
  static inline void row(const ap_ctx& c, int64_t a, int64_t b, float* tmp) {
    const ap_array &x = c.in[I], &y = c.out[I];
    const int64_t D = x.shape[2], dims = c.symbols[2];
    const T* from = static_cast<const T*>(x.data) + a * x.strides[0] + b * x.strides[1];
    T* to = static_cast<T*>(y.data) + a * y.strides[0] + b * y.strides[1];
    for (int64_t d = 0; d < D; d += V::W) store(tmp + d, load(from + d, int(min64(V::W, D - d))));
    const float* freqs = static_cast<const float*>(c.in[2].data);
    const float scale = static_cast<const float*>(c.in[3].data)[0], base = static_cast<const float*>(c.in[3].data)[1];
    if (Freqs) rope(tmp, D, dims, c.symbols[1] + a, freqs, scale, Traditional, rope_table());
    else rope(tmp, D, dims, c.symbols[1] + a, base, scale, Traditional, rope_table());
    for (int64_t d = 0; d < D; d += V::W) store(to + d, load(tmp + d), int(min64(V::W, D - d)));
  }
};
""" + "".join(
    f"AP_KERNEL(rope{t}{f}, RowMap<RowMapSchedule<256>, Rotate_<f32, 0, {t}, {f}>, Rotate_<f32, 1, {t}, {f}>>)\n"
    for t in (0, 1)
    for f in (0, 1)
)

# name: query, key/value and output types, D, DV, causal, schedule, layout flags
ATTENTION = {
    "f16_64": ("f16", "f16", "f16", 64, 64, True, "AttentionSchedule<>", False),
    "f16_64_blhd": ("f16", "f16", "f16", 64, 64, True, "AttentionSchedule<3>", True),
    "f32_full": ("f32", "f32", "f32", 40, 24, False, "AttentionSchedule<1, 32, 2, 12, 32>", False),
    "mixed_128": ("f32", "bf16", "bf16", 128, 104, True, "AttentionSchedule<>", False),
}


def attention_source(name: str) -> str:
    """One attention kernel."""
    q, kv, out, d, dv, causal, schedule, flat = ATTENTION[name]
    flags = "static constexpr bool QBLHD = true, OutBLHD = true;" if flat else ""
    ops = f"static constexpr int q = 0, k = 1, v = 2, out = 0; static constexpr float scale = {d**-0.5:.8f}f; {flags}"
    types = f"AttnTypes<{q}, {kv}, {out}>"
    return (
        f'#include "attention.h"\nusing namespace ap;\nstruct Ops {{ {ops} }};\n'
        f"AP_KERNEL(attention_{name}, Attention<{types}, {d}, {dv}, {str(causal).lower()}, {schedule}, Ops>)\n"
    )
