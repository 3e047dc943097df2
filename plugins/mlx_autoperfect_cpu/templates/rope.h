// Rotary position embedding of one row, as mx.fast.rope defines it: of the first `dims` features, pair i (of dims / 2)
// is rotated by position * scale * base^(-2 i / dims), or by position * scale / freqs[i]. Pairs are (i, i + dims / 2),
// or (2 i, 2 i + 1) if `traditional`. Angles are computed in double, so that long contexts lose nothing.
#pragma once
#include "vmath.h"

namespace ap {

constexpr int kMaxPairs = 128;  // dims <= 256

// Cosines and sines of the last position that this thread rotated by: a memo, shared by heads and by layers.
struct RopeTable {
  int64_t dims = -1, position = 0;
  float base = 0.f, scale = 0.f;  // base 0: explicit frequencies
  float freqs[kMaxPairs];
  double inverse[kMaxPairs];      // angle per unit of position * scale
  alignas(64) float cosine[kMaxPairs], sine[kMaxPairs];
};

inline RopeTable& rope_table() {
  static thread_local RopeTable table;
  return table;
}

// Cosine and sine of count angles, right to about 1e-10 for |angle| up to 1e7. Branch-free, so that it vectorises.
AP_NOINLINE inline void sincos(const double* angle, double factor, int64_t count, float* cosine, float* sine) {
  constexpr double shift = 0x1.8p52;  // adding it rounds to a whole number, which its low bits hold
  for (int64_t i = 0; i < count; ++i) {
    const double x = angle[i] * factor;
    const double shifted = x * 0.63661977236758134308 + shift, n = shifted - shift;
    const double r = (x - n * 0x1.921fb544p0) - n * 0x1.0b4611a626331p-34;  // pi / 2; its first part has 33 bits
    const double z = r * r;
    // Taylor series of (sin(r) / r - 1) / z and (cos(r) - 1) / z in z.
    double s = 1.0 / 362880 - z / 39916800, c = z / 479001600 - 1.0 / 3628800;
    s = (s * z - 1.0 / 5040) * z + 1.0 / 120;
    c = (c * z + 1.0 / 40320) * z - 1.0 / 720;
    s = r + r * z * (s * z - 1.0 / 6);
    c = 1 + z * ((c * z + 1.0 / 24) * z - 0.5);
    const uint64_t quarter = std::bit_cast<uint64_t>(shifted);
    const double first = quarter & 1 ? s : c, second = quarter & 1 ? c : s;
    cosine[i] = float((quarter + 1) & 2 ? -first : first);
    sine[i] = float(quarter & 2 ? -second : second);
  }
}

inline void rotate(float* x, int64_t dims, bool traditional, const RopeTable& t) {
  const int64_t pairs = dims / 2;
  for (int64_t i = 0; i < pairs; i += V::W) {
    const int n = int(min64(V::W, pairs - i));
    const V c = load(t.cosine + i, n), s = load(t.sine + i, n);
    if (!traditional) {
      const V a = load(x + i, n), b = load(x + pairs + i, n);
      store(x + i, a * c - b * s, n);
      store(x + pairs + i, a * s + b * c, n);
    } else {
      float* p = x + 2 * i;
      const int low = n < V::W / 2 ? 2 * n : V::W, high = 2 * n - low;
      const V first = load(p, low), second = load(p + low, high), a = even(first, second), b = odd(first, second);
      const V left = a * c - b * s, right = a * s + b * c;
      store(p, shuffle<Zip<0>>(left, right), low);
      store(p + low, shuffle<Zip<V::W / 2>>(left, right), high);
    }
  }
}

inline void rope(float* x, int64_t /*D*/, int64_t dims, int64_t position, float base, float scale, bool traditional,
                 RopeTable& t) {
  const int64_t pairs = dims / 2;
  const bool known = t.dims == dims && t.base == base;
  if (!known)
    for (int64_t i = 0; i < pairs; ++i)
      t.inverse[i] = __builtin_exp2(-2.0 * double(i) / double(dims) * __builtin_log2(base));
  if (!known || t.position != position || t.scale != scale) {
    sincos(t.inverse, double(position) * scale, pairs, t.cosine, t.sine);
    t.dims = dims, t.base = base, t.position = position, t.scale = scale;
  }
  rotate(x, dims, traditional, t);
}

// With dims / 2 explicit frequencies.
inline void rope(float* x, int64_t /*D*/, int64_t dims, int64_t position, const float* freqs, float scale,
                 bool traditional, RopeTable& t) {
  const int64_t pairs = dims / 2;
  const bool same = t.dims == dims && t.base == 0.f;
  const bool known = same && !__builtin_memcmp(t.freqs, freqs, size_t(pairs) * sizeof(float));
  if (!known)
    for (int64_t i = 0; i < pairs; ++i) t.freqs[i] = freqs[i], t.inverse[i] = 1.0 / double(freqs[i]);
  if (!known || t.position != position || t.scale != scale) {
    sincos(t.inverse, double(position) * scale, pairs, t.cosine, t.sine);
    t.dims = dims, t.base = 0.f, t.position = position, t.scale = scale;
  }
  rotate(x, dims, traditional, t);
}

}  // namespace ap
