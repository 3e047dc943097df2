// Attention of many queries: tiles of query rows against tiles of keys, as two matrix products around an online
// softmax.
#pragma once
#include "attention_operands.h"
#include "gemm.h"

namespace ap {

template <class Operands, class Schedule> struct AttentionPrefill {
  using KV = typename Operands::KV;
  static constexpr int D = Operands::D, DV = Operands::DV, Rows = Schedule::TileRows, Keys = Schedule::TileKeys;
  static constexpr int kQueryStride = int(spread_stride(round_up(D, V::W))), kScoreStride = int(spread_stride(Keys));
  static constexpr int kWidth = int(round_up(DV, kMicroColumns));
  static_assert(Keys % kMicroColumns == 0 && Rows % kMicroRows == 0);

  // What one thread works in.
  struct Tile {
    float query[Rows * kQueryStride];   // [row][d], scaled
    float key[D * Keys];                // [d][key]
    float value[Keys * kWidth];         // [key][d]
    float score[Rows * kScoreStride];   // [row][key], then the exponentials
    float sum[Rows * kWidth];           // [row][d], not yet divided
    float maximum[Rows], total[Rows];
  };
  static constexpr int64_t tile_floats = round_up(sizeof(Tile) / 4, 16);

  static constexpr int64_t scratch_floats(int64_t threads) { return threads * tile_floats; }

  static void run(const ap_ctx& c, const Operands& o) {
    Tile& t = *reinterpret_cast<Tile*>(static_cast<float*>(c.scratch) + c.tid * tile_floats);
    const int64_t tiles = ceil_div(o.rows(), Rows), heads = o.B * o.HKV;
    for (int64_t i; (i = ap_next_chunk(&c)) < tiles * heads;) {
      const int64_t first = (tiles - 1 - i / heads) * Rows;  // the longest first
      tile(o, t, i % heads / o.HKV, i % heads % o.HKV, first, min64(Rows, o.rows() - first));
    }
  }

 private:
  static void tile(const Operands& o, Tile& t, int64_t b, int64_t hk, int64_t first, int64_t rows) {
    const int64_t padded = round_up(rows, kRowStep);
    for (int64_t r = 0; r < padded; ++r) {
      if (r < rows) o.load_query(b, hk, first + r, t.query + r * kQueryStride);
      else __builtin_memset(t.query + r * kQueryStride, 0, sizeof(float) * D);
      t.maximum[r] = -__builtin_inff();
      t.total[r] = 0.f;
    }
    __builtin_memset(t.sum, 0, sizeof(float) * size_t(padded) * kWidth);
    const int64_t end = o.limit(first + rows - 1);
    for (int64_t k = 0; k < end; k += Keys) {
      const int64_t count = min64(Keys, end - k);
      load_keys(o, t, b, hk, k, count);
      load_values(o, t, b, hk, k, count);
      gemm(t.query, kQueryStride, t.key, Keys, padded, Keys, D, t.score, kScoreStride, false);
      for (int64_t r = 0; r < padded; ++r) softmax(t, r, min64(count, o.limit(first + min64(r, rows - 1)) - k));
      gemm(t.score, kScoreStride, t.value, kWidth, padded, kWidth, count, t.sum, kWidth, true);
    }
    for (int64_t r = 0; r < rows; ++r) o.store_row(b, hk, first + r, t.sum + r * kWidth, 1.f / t.total[r]);
  }

  // One row: the exponentials of its first `seen` scores, 0 for the others; rescales what was summed before.
  static void softmax(Tile& t, int64_t r, int64_t seen) {
    float* score = t.score + r * kScoreStride;
    for (int64_t i = max64(seen, 0); i < Keys; ++i) score[i] = -__builtin_inff();
    V most(t.maximum[r]);
    for (int i = 0; i < Keys; i += V::W) most = vmax(most, load(score + i));
    const V maximum(hmax(most)), factor = vexp(V(t.maximum[r]) - maximum);
    V total(0.f);
    for (int i = 0; i < Keys; i += V::W) {
      const V e = vexp(load(score + i) - maximum);
      store(score + i, e);
      total += e;
    }
    if (maximum.v[0] != t.maximum[r])
      for (int d = 0; d < kWidth; d += V::W) store(t.sum + r * kWidth + d, load(t.sum + r * kWidth + d) * factor);
    t.total[r] = t.total[r] * factor.v[0] + hsum(total);
    t.maximum[r] = maximum.v[0];
  }

  static void load_keys(const Operands& o, Tile& t, int64_t b, int64_t hk, int64_t first, int64_t count) {
    for (int64_t i = 0; i < Keys; i += V::W)
      for (int d = 0; d < D; d += V::W) {
        V rows[V::W];
        for (int j = 0; j < V::W; ++j) rows[j] = i + j < count ? load_part<D>(o.key(b, hk, first + i + j), d) : V(0.f);
        transpose(rows);
        for (int j = 0; j < V::W && d + j < D; ++j) store(t.key + (d + j) * Keys + i, rows[j]);
      }
  }

  static void load_values(const Operands& o, Tile& t, int64_t b, int64_t hk, int64_t first, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      const KV* value = o.value(b, hk, first + i);
      for (int d = 0; d < kWidth; d += V::W) store(t.value + i * kWidth + d, d < DV ? load_part<DV>(value, d) : V(0.f));
    }
  }
};

}  // namespace ap
