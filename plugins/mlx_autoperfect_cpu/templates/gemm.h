// The register-tiled kernel of matrix products in f32: C[rows, NV * W] (+)= A[rows, k] * B[k, NV * W].
#pragma once
#include "vec.h"

namespace ap {

// Rows of C held in registers with two vectors each, by the number of vector registers (32 or 16).
#if AP_LANES == 16 || defined(__aarch64__)
constexpr int kMicroRows = 12;
#else
constexpr int kMicroRows = 6;
#endif
constexpr int kMicroVectors = 2;
constexpr int kMicroColumns = kMicroVectors * V::W;
constexpr int kRowStep = kMicroRows / 3;  // row counts are padded to a multiple of this

template <int Rows>
AP_NOINLINE void micro(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t k, float* c,
                       int64_t c_stride, bool accumulate) {
  V acc[Rows][kMicroVectors];
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 16
    for (int v = 0; v < kMicroVectors; ++v) acc[i][v] = accumulate ? load(c + i * c_stride + v * V::W) : V(0.f);
  for (int64_t j = 0; j < k; ++j) {
    V columns[kMicroVectors];
#pragma GCC unroll 16
    for (int v = 0; v < kMicroVectors; ++v) columns[v] = load(b + j * b_stride + v * V::W);
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
      const V value(a[i * a_stride + j]);
#pragma GCC unroll 16
      for (int v = 0; v < kMicroVectors; ++v) acc[i][v] = fma(value, columns[v], acc[i][v]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 16
    for (int v = 0; v < kMicroVectors; ++v) store(c + i * c_stride + v * V::W, acc[i][v]);
}

// rows is a multiple of kRowStep, columns of kMicroColumns.
inline void gemm(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t rows, int64_t columns,
                 int64_t k, float* c, int64_t c_stride, bool accumulate) {
  for (int64_t n = 0; n < columns; n += kMicroColumns)
    for (int64_t m = 0; m < rows;) {
      const int64_t left = rows - m;
      const int step = left >= kMicroRows ? kMicroRows : int(left);
      const auto kernel = step == kMicroRows     ? micro<kMicroRows>
                          : step == 2 * kRowStep ? micro<2 * kRowStep>
                                                 : micro<kRowStep>;
      kernel(a + m * a_stride, a_stride, b + n, b_stride, k, c + m * c_stride + n, c_stride, accumulate);
      m += step;
    }
}

// A row stride for `floats` that spreads successive rows over the sets of a cache: an odd number of 64-byte lines.
constexpr int64_t spread_stride(int64_t floats) { return (ceil_div(floats, 16) | 1) * 16; }

}  // namespace ap
