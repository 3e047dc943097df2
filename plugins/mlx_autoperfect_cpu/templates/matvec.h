// A few activation rows times weight matrices: decoding.
//
// Every weight is read once per tile of rows, straight from its packed form, and the loop over K is a stream of fused
// multiply-adds. One activation row is prepared by every thread for itself, which costs less than a barrier; several
// are shared. Each output element is computed by one thread in an order that depends on nothing but K.
#pragma once
#include "linear.h"

namespace ap {

// Knobs:
//   Rows     weight rows in flight, a divisor of V::W (1, 2, 4, 8)
//   Tile     activation rows per pass over the weights: 1, 2, 4, 8; Rows * Tile accumulators are live twice
//   Chunks   pieces of work per thread (1..64): more balance better, fewer keep the streams long
//   Ahead    bytes of weights to prefetch ahead (0: none, 512..8192): the processor's own prefetching stops at pages
template <int Rows_ = V::W < 16 ? 2 : 4, int Tile_ = V::W < 16 ? 2 : 4, int Chunks_ = 8, int Ahead_ = 4096>
struct MatVecSchedule {
  static constexpr int Rows = Rows_, Tile = Tile_, Chunks = Chunks_, Ahead = Ahead_;
  static_assert(V::W % Rows == 0 && (Tile & (Tile - 1)) == 0);
};

// scratch_bytes({M, K, threads}) = 4 * (threads * row_floats(K) + max(threads, M) * packed_floats(K)),
// at most c0 + c1 * M with c1 = 4 * packed_floats(K), c0 = 4 * threads * (row_floats(K) + packed_floats(K)).
template <class Pro, class Schedule, class... Jobs> struct MatVec {
  static constexpr int kPad = int(max64(128, V::W * 16));  // what the formats may read of a row, at most

  static constexpr int64_t row_floats(int64_t K) { return round_up(K, kPad) + V::W; }

  // Where the packed row of each job starts: jobs of equal format share it.
  struct Packing {
    int64_t offset[sizeof...(Jobs)], total = 0;
    constexpr explicit Packing(int64_t K) {
      const int64_t floats[] = {Jobs::Format::packed_floats(K)...};
      for (int i = 0; i < int(sizeof...(Jobs)); ++i) {
        const int first = kFirst.index[i];
        offset[i] = first < i ? offset[first] : total;
        if (first == i) total += floats[i];
      }
    }
  };
  static constexpr int64_t packed_floats(int64_t K) { return Packing(K).total; }

  static constexpr int64_t scratch_bytes(const int64_t* sizes) {
    const int64_t M = sizes[0], K = sizes[1], threads = sizes[2];
    return 4 * (threads * row_floats(K) + max64(threads, M) * packed_floats(K));
  }

  static void run(const ap_ctx& c) {
    const int64_t M = c.symbols[0], K = first_k(c);
    const Packing packing(K);
    const bool shared = M > 1;
    float* row = static_cast<float*>(c.scratch) + c.tid * row_floats(K);
    float* packed = static_cast<float*>(c.scratch) + c.nthreads * row_floats(K);
    if (!shared) packed += c.tid * packing.total;
    for (int64_t m = shared ? c.tid : 0; m < M; m += shared ? c.nthreads : 1)
      prepare(c, m, K, packing, row, packed + m * packing.total);
    if (shared) ap_barrier(&c);

    const BlockSpace<V::W, Jobs...> space(c);
    const int64_t chunk = max64(1, space.total() / (int64_t(c.nthreads) * Schedule::Chunks));
    for (int64_t first; (first = ap_next_chunk(&c) * chunk) < space.total();)
      for (int64_t i = first; i < min64(first + chunk, space.total()); ++i)
        space.visit(i, [&]<class Job>(int job, int64_t n) {
          const float* x = packed + packing.offset[job];
          int64_t m = 0;
          for (; m + Schedule::Tile <= M; m += Schedule::Tile)
            block<Job, Schedule::Tile>(c, m, n, x + m * packing.total, packing.total);
          rest<Job, Schedule::Tile / 2>(c, m, M, n, x, packing.total);
        });
  }

 private:
  struct FirstOfFormat {
    int index[sizeof...(Jobs)];
  };
  template <class T> static constexpr char kIdentity = 0;
  static constexpr FirstOfFormat kFirst = [] {
    constexpr const char* id[] = {&kIdentity<typename Jobs::Format>...};
    FirstOfFormat first{};
    for (int i = 0; i < int(sizeof...(Jobs)); ++i)
      for (first.index[i] = 0; id[first.index[i]] != id[i];) ++first.index[i];
    return first;
  }();

  template <class Job, class...> struct Head { using type = Job; };
  static int64_t first_k(const ap_ctx& c) { return open_matrix<typename Head<Jobs...>::type>(c, 0).K; }

  static void prepare(const ap_ctx& c, int64_t m, int64_t K, const Packing& packing, float* row, float* packed) {
    for (int64_t k = K; k < round_up(K, kPad); ++k) row[k] = 0.f;
    Pro::row(c, m, K, row);
    for (int64_t k = K; k < round_up(K, V::W); ++k) row[k] = 0.f;  // the prologue may have written whole vectors
    int i = 0;
    ((kFirst.index[i] == i ? Jobs::Format::pack(row, K, packed + packing.offset[i]) : void(), ++i), ...);
  }

  // The rows that do not fill a tile, in tiles of half the size, and so on.
  template <class Job, int Tile>
  static void rest(const ap_ctx& c, int64_t m, int64_t M, int64_t n, const float* x, int64_t stride) {
    if constexpr (Tile > 0) {
      if (m + Tile <= M) {
        block<Job, Tile>(c, m, n, x + m * stride, stride);
        m += Tile;
      }
      rest<Job, Tile / 2>(c, m, M, n, x, stride);
    }
  }

  // Columns n .. n + W - 1 of M rows.
  template <class Job, int M> static void block(const ap_ctx& c, int64_t m, int64_t n, const float* x, int64_t stride) {
    using Format = typename Job::Format;
    constexpr int count = kMatrices<Job>;
    V sums[count][M][V::W];
    int64_t N = 0;
    for (int i = 0; i < count; ++i) {
      const auto matrix = open_matrix<Job>(c, i);
      N = matrix.N;
      for (int r = 0; r < V::W && n + r < N; r += Schedule::Rows)
        Format::template dot<Schedule::Rows, M, Schedule::Ahead>(matrix, n + r, x, stride, &sums[i][0][r]);
    }
    const int valid = int(min64(V::W, N - n));
    for (int row = 0; row < M; ++row) {
      V acc[count];
      for (int i = 0; i < count; ++i) {
        for (int r = valid; r < V::W; ++r) sums[i][row][r] = V(0.f);
        acc[i] = reduce_rows(sums[i][row]);
      }
      const V value = Job::elem(c, m + row, n, N, valid, acc);
      typename Job::Out* out = static_cast<typename Job::Out*>(c.out[Job::kOut].data) + (m + row) * N + n;
      if (valid == V::W) store(out, value);
      else store(out, value, valid);
    }
  }
};

}  // namespace ap
