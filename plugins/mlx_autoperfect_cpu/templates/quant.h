// Weight formats: how a matrix [N, K] lies in memory, its product with activation rows, its expansion into panels.
//
// A format has
//   Matrix open(c, i)             the matrix whose first operand is c.in[i]
//   packed_floats(K)              floats of one packed activation row
//   pack(x, K, dst)               packs K activations; x is readable up to round_up(K, kPad) floats and 0 beyond K
//   dot<R, M, Ahead>(a, n, x, x_stride, out)   products of weight rows n .. n + R - 1 with M packed activation rows;
//                                 out[m * V::W + r] has the sum spread over its lanes. Rows past the
//                                 end repeat the last
//   panel(a, n, k, count, dst, stride)   weights of rows n .. n + V::W - 1, columns k .. k + count - 1, transposed to
//                                 f32: dst[j * stride + lane]; k is a multiple of kPanelStep
#pragma once
#include "vec.h"

namespace ap {

// Plain weights of type T (f16, bf16, f32).
template <class T> struct Dense {
  struct Matrix {
    const T* data;
    int64_t N, K;
    const T* row(int64_t n) const { return data + min64(n, N - 1) * K; }
  };
  static constexpr int kPad = V::W, kPanelStep = V::W;

  static Matrix open(const ap_ctx& c, int i) {
    const ap_array& w = c.in[i];
    return {static_cast<const T*>(w.data), w.shape[w.ndim - 2], w.shape[w.ndim - 1]};
  }

  static constexpr int64_t packed_floats(int64_t K) { return round_up(K, V::W); }

  static void pack(const float* x, int64_t K, float* dst) {
    for (int64_t k = 0; k < K; k += V::W) store(dst + k, load(x + k));
  }

  template <int R, int M, int Ahead>
  static AP_NOINLINE void dot(const Matrix& a, int64_t n, const float* x, int64_t x_stride, V* out) {
    const T* w[R];
    V total[M][R];
    for (int r = 0; r < R; ++r) w[r] = a.row(n + r);
    for (int m = 0; m < M; ++m)
      for (int r = 0; r < R; ++r) total[m][r] = V(0.f);
    int64_t k = 0;
    auto step = [&](auto read) __attribute__((always_inline)) {
      V weights[R];
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) weights[r] = read(w[r] + k);
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) {
        const V activations = load(x + m * x_stride + k);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) total[m][r] = fma(weights[r], activations, total[m][r]);
      }
    };
    for (; k + V::W <= a.K; k += V::W)
      step([](const T* p) __attribute__((always_inline)) {
        if constexpr (Ahead > 0) prefetch(reinterpret_cast<const char*>(p) + Ahead);
        return load(p);
      });
    if (k < a.K) step([&](const T* p) __attribute__((always_inline)) { return load(p, int(a.K - k)); });
    for (int m = 0; m < M; ++m)
      for (int r = 0; r < R; ++r) out[m * V::W + r] = total[m][r];
  }

  static AP_NOINLINE void panel(const Matrix& a, int64_t n, int64_t k, int64_t count, float* dst, int64_t stride) {
    const T* w[V::W];
    for (int r = 0; r < V::W; ++r) w[r] = a.row(n + r) + k;
    for (int64_t j = 0; j < count; j += V::W) {
      const int width = int(min64(V::W, count - j));
      V tile[V::W];
      for (int r = 0; r < V::W; ++r) tile[r] = width == V::W ? load(w[r] + j) : load(w[r] + j, width);
      transpose(tile);
      for (int i = 0; i < width; ++i) store(dst + (j + i) * stride, tile[i]);
    }
  }
};

// MLX's affine quantisation: w = q * scale + bias with Bits-bit q (4 or 8), one scale and bias of type S per Group
// weights along K; q is packed into 32-bit words, least significant field first.
//
// dot works on blocks of V::W words: field j of every word at once. pack therefore reorders the activations so that
// vector j of a block holds the activations that meet field j. The biases need only the sum of each group's
// activations, which pack appends. Sum over a group: scale * sum(q * x) + bias * sum(x).
template <int Bits, int Group, class S> struct Affine {
  static_assert(Bits == 4 || Bits == 8);
  static constexpr int kFields = 32 / Bits;           // weights per word
  static constexpr int kWords = Group / kFields;      // words per group
  static constexpr int kBlock = V::W * kFields;       // weights per block
  static constexpr int kPad = kBlock > Group ? kBlock : Group;
  static constexpr int kPanelStep = kPad;

  struct Matrix {
    const uint32_t* words;
    const S *scales, *biases;
    int64_t N, K;
    int64_t clamp(int64_t n) const { return min64(n, N - 1); }
  };

  static Matrix open(const ap_ctx& c, int i) {
    const ap_array& w = c.in[i];
    return {static_cast<const uint32_t*>(w.data), static_cast<const S*>(c.in[i + 1].data),
            static_cast<const S*>(c.in[i + 2].data), w.shape[w.ndim - 2], int64_t(w.shape[w.ndim - 1]) * kFields};
  }

  static constexpr int64_t packed_floats(int64_t K) { return round_up(K, kBlock) + round_up(K / Group, V::W); }

  static void pack(const float* x, int64_t K, float* dst) {
    float* sums = dst + round_up(K, kBlock);
    for (int64_t k = 0; k < K; k += kBlock) {
      V in[kFields], out[kFields];
      for (int i = 0; i < kFields; ++i) in[i] = load(x + k + i * V::W);
      deinterleave<kFields>(in, out);
      for (int i = 0; i < kFields; ++i) store(dst + k + i * V::W, out[i]);
    }
    const int64_t groups = K / Group;
    for (int64_t g = 0; g < round_up(groups, V::W); g += V::W) {
      V rows[V::W];
      for (int r = 0; r < V::W; ++r) {
        rows[r] = V(0.f);
        if (g + r < groups)
          for (int i = 0; i < Group; i += V::W) rows[r] += load(x + (g + r) * Group + i);
      }
      store(sums + g, reduce_rows(rows));
    }
  }

  template <int R, int M, int Ahead>
  static AP_NOINLINE void dot(const Matrix& a, int64_t n, const float* x, int64_t x_stride, V* out) {
    const int64_t row_words = a.K / kFields, groups = a.K / Group;
    const float* sums = x + round_up(a.K, kBlock);
    const uint32_t* w[R];
    const S *scales[R], *biases[R];
    V total[M][R];
    for (int r = 0; r < R; ++r) {
      const int64_t row = a.clamp(n + r);
      w[r] = a.words + row * row_words;
      scales[r] = a.scales + row * groups;
      biases[r] = a.biases + row * groups;
    }
    for (int m = 0; m < M; ++m)
      for (int r = 0; r < R; ++r) total[m][r] = V(0.f);

    // V::W groups at a time, so that their scales fill a vector; then block by block.
    for (int64_t g = 0; g < groups; g += V::W) {
      const int count = int(min64(V::W, groups - g));
      Spread<kWords> scale[R];
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        scale[r].set(count == V::W ? load(scales[r] + g) : load(scales[r] + g, count));
        const V bias = count == V::W ? load(biases[r] + g) : load(biases[r] + g, count);
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m) total[m][r] = fma(bias, load(sums + m * x_stride + g), total[m][r]);
      }
      const int words = count * kWords;
      for (int first = 0; first < words; first += V::W) {
        VI q[R];
        V part[M][R];
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
          const uint32_t* p = w[r] + g * kWords + first;
          if constexpr (Ahead > 0) prefetch(reinterpret_cast<const char*>(p) + Ahead);
          q[r] = first + V::W <= words ? load_words(p) : load_words(p, words - first);
        }
        const float* block = x + (g * kWords + first) * kFields;
        unroll<kFields>([&](auto field) __attribute__((always_inline)) {
          constexpr int j = decltype(field)::value;
          V weights[R];
#pragma GCC unroll 16
          for (int r = 0; r < R; ++r) weights[r] = unpack<Bits, j>(q[r]);
#pragma GCC unroll 16
          for (int m = 0; m < M; ++m) {
            const V activations = load(block + m * x_stride + j * V::W);
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r)
              part[m][r] = j == 0 ? weights[r] * activations : fma(weights[r], activations, part[m][r]);
          }
        });
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
          const V spread = scale[r](first / V::W);
#pragma GCC unroll 16
          for (int m = 0; m < M; ++m) total[m][r] = fma(part[m][r], spread, total[m][r]);
        }
      }
    }
    for (int m = 0; m < M; ++m)
      for (int r = 0; r < R; ++r) out[m * V::W + r] = total[m][r];
  }

  // Word tiles are transposed while still packed: lane r of tile[i] is word i of row r.
  static AP_NOINLINE void panel(const Matrix& a, int64_t n, int64_t k, int64_t count, float* dst, int64_t stride) {
    const int64_t row_words = a.K / kFields, groups = a.K / Group;
    constexpr int kTile = V::W > kWords ? V::W : kWords;  // words per step: whole groups
    constexpr int kTileGroups = kTile / kWords;
    for (int64_t j = 0; j < count; j += kTile * kFields) {
      const int words = int(min64(kTile, (count - j) / kFields));
      const int64_t word = (k + j) / kFields, group = (k + j) / Group;
      V scale[V::W], bias[V::W];
      for (int r = 0; r < V::W; ++r) {
        const int64_t at = a.clamp(n + r) * groups + group;
        scale[r] = load(a.scales + at, ceil_div(words, kWords));
        bias[r] = load(a.biases + at, ceil_div(words, kWords));
      }
      transpose(scale);
      transpose(bias);
      for (int first = 0; first < words; first += V::W) {
        V tile[V::W];
        for (int r = 0; r < V::W; ++r) {
          const uint32_t* p = a.words + a.clamp(n + r) * row_words + word + first;
          tile[r] = from_bits(first + V::W <= words ? load_words(p) : load_words(p, words - first));
        }
        transpose(tile);
        for (int i = 0; i < V::W && first + i < words; ++i) {
          const int g = kTileGroups == 1 ? 0 : (first + i) / kWords;
          float* to = dst + (j + (first + i) * kFields) * stride;
          const VI q = to_bits(tile[i]);
          unroll<kFields>([&](auto field) __attribute__((always_inline)) {
            constexpr int f = decltype(field)::value;
            store(to + f * stride, fma(unpack<Bits, f>(q), scale[g], bias[g]));
          });
        }
      }
    }
  }
};

}  // namespace ap
