// Many activation rows times weight matrices: prefill.
//
// Panels of weights, a few vectors of columns wide, are expanded to f32 once and multiplied with all rows of a block.
// The prologue's rows are made by the team together, then read by all. Jobs and prologues are those of linear.h.
#pragma once
#include "gemm.h"
#include "linear.h"

namespace ap {

// Knobs:
//   Depth    columns of K per panel, a multiple of 128 (128..1024); a panel has Depth * 2 * V::W floats
//   Block    rows per block of work (multiple of 48; 48..1536)
template <int Depth_ = 384, int Block_ = 480> struct MatMulSchedule {
  static constexpr int Depth = Depth_, Block = Block_;
  static_assert(Depth % 128 == 0 && Block % 48 == 0);
};

// scratch_bytes({M, K, threads}) = 4 * (round_up(M, kRowStep) * row_stride(K) + threads * thread_floats), at most
// c0 + c1 * M with c1 = 4 * row_stride(K), c0 = 4 * (kRowStep * row_stride(K) + threads * thread_floats).
template <class Pro, class Schedule, class... Jobs> struct MatMul {
  static constexpr int kColumns = kMicroColumns;
  static constexpr int kMostMatrices = [] {
    int most = 0;
    ((most = kMatrices<Jobs> > most ? kMatrices<Jobs> : most), ...);
    return most;
  }();
  static constexpr int64_t kPanelFloats = int64_t(Schedule::Depth) * kColumns;
  static constexpr int64_t kProductFloats = int64_t(Schedule::Block) * kColumns;
  static constexpr int64_t thread_floats = kPanelFloats + kMostMatrices * kProductFloats;

  static constexpr int64_t row_stride(int64_t K) { return spread_stride(K + V::W); }

  static constexpr int64_t scratch_bytes(const int64_t* sizes) {
    const int64_t M = sizes[0], K = sizes[1], threads = sizes[2];
    return 4 * (round_up(M, kRowStep) * row_stride(K) + threads * thread_floats);
  }

  static void run(const ap_ctx& c) {
    const int64_t M = c.symbols[0], K = first_k(c), stride = row_stride(K), padded = round_up(M, kRowStep);
    float* rows = static_cast<float*>(c.scratch) + c.nthreads * thread_floats;
    for (int64_t m = c.tid; m < padded; m += c.nthreads) {
      if (m < M) Pro::row(c, m, K, rows + m * stride);
      else __builtin_memset(rows + m * stride, 0, size_t(K) * sizeof(float));
    }
    ap_barrier(&c);

    // Fewer rows per block where there are too few panels for the team.
    const BlockSpace<kColumns, Jobs...> space(c);
    int64_t block = min64(padded, Schedule::Block);
    while (block > 4 * kMicroRows && space.total() * ceil_div(padded, block) < 3 * c.nthreads)
      block = round_up(ceil_div(block, 2), kMicroRows);
    const int64_t blocks = ceil_div(padded, block);
    for (int64_t i; (i = ap_next_chunk(&c)) < space.total() * blocks;)
      space.visit(i / blocks, [&]<class Job>(int, int64_t n) {
        const int64_t m = i % blocks * block;
        tile<Job>(c, m, min64(block, padded - m), M, K, n, rows + m * stride, stride);
      });
  }

 private:
  template <class Job, class...> struct Head { using type = Job; };
  static int64_t first_k(const ap_ctx& c) { return open_matrix<typename Head<Jobs...>::type>(c, 0).K; }

  // Rows m .. m + rows - 1 (those below M count), columns n .. n + kColumns - 1.
  template <class Job>
  static void tile(const ap_ctx& c, int64_t m, int64_t rows, int64_t M, int64_t K, int64_t n, const float* x,
                   int64_t stride) {
    using Format = typename Job::Format;
    constexpr int count = kMatrices<Job>;
    float* panel = static_cast<float*>(c.scratch) + c.tid * thread_floats;
    float* product = panel + kPanelFloats;
    const int64_t depth = round_up(ceil_div(K, ceil_div(K, Schedule::Depth)), Format::kPanelStep);
    int64_t N = 0;
    for (int i = 0; i < count; ++i) {
      const auto matrix = open_matrix<Job>(c, i);
      N = matrix.N;
      for (int64_t k = 0; k < K; k += depth) {
        const int64_t step = min64(depth, K - k);
        for (int v = 0; v < kMicroVectors; ++v)
          Format::panel(matrix, n + v * V::W, k, step, panel + v * V::W, kColumns);
        gemm(x + k, stride, panel, kColumns, rows, kColumns, step, product + i * kProductFloats, kColumns, k > 0);
      }
    }
    for (int64_t row = 0; row < min64(rows, M - m); ++row)
      for (int v = 0; v < kMicroVectors && n + v * V::W < N; ++v) {
        const int64_t column = n + v * V::W;
        const int valid = int(min64(V::W, N - column));
        V acc[count];
        for (int i = 0; i < count; ++i) acc[i] = load(product + i * kProductFloats + row * kColumns + v * V::W);
        const V value = Job::elem(c, m + row, column, N, valid, acc);
        typename Job::Out* out = static_cast<typename Job::Out*>(c.out[Job::kOut].data) + (m + row) * N + column;
        if (valid == V::W) store(out, value);
        else store(out, value, valid);
      }
  }
};

}  // namespace ap
