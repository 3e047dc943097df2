// Attention of a few queries: the keys are cut into pieces of fixed size, each handled by one thread for all query
// heads of a key head, so that keys and values are read once; the pieces are then combined in order.
#pragma once
#include "attention_operands.h"

namespace ap {

template <class Operands, class Schedule> struct AttentionDecode {
  using KV = typename Operands::KV;
  static constexpr int D = Operands::D, DV = Operands::DV, Keys = Schedule::Keys, Queries = Schedule::Queries;
  // Vectors of a key, of a value.
  static constexpr int kDepth = int(ceil_div(D, V::W)), kWidth = int(ceil_div(DV, V::W));
  static constexpr int kPart = 4;  // vectors of values at once
  static constexpr int64_t kQueryFloats = kDepth * V::W;
  static constexpr int64_t partial_floats = kWidth * V::W + 16;  // weighted sum of values; maximum; sum of exponentials

  // Query rows and scores of one thread.
  static constexpr int64_t thread_floats(int64_t rows) { return rows * kQueryFloats + Queries * Keys; }

  static constexpr int64_t scratch_floats(int64_t B, int64_t H, int64_t HKV, int64_t L, int64_t T, int64_t threads) {
    return threads * thread_floats(L * (H / HKV)) + B * H * L * ceil_div(T, Keys) * partial_floats;
  }

  static void run(const ap_ctx& c, const Operands& o) {
    const int64_t rows = o.rows(), pieces = ceil_div(o.T, Keys), units = o.B * o.HKV * pieces;
    float* queries = static_cast<float*>(c.scratch) + c.tid * thread_floats(rows);
    float* scores = queries + rows * kQueryFloats;
    float* partials = static_cast<float*>(c.scratch) + c.nthreads * thread_floats(rows);
    int64_t loaded = -1;
    for (int64_t i; (i = ap_next_chunk(&c)) < units;) {
      const int64_t head = i / pieces, b = head / o.HKV, hk = head % o.HKV, piece = i % pieces;
      if (head != loaded)
        for (int64_t row = 0; row < rows; ++row) o.load_query(b, hk, row, queries + row * kQueryFloats);
      loaded = head;
      float* out = partials + (head * rows * pieces + piece) * partial_floats;
      passes<Queries>(o, b, hk, 0, piece * Keys, queries, scores, out, pieces);
    }
    ap_barrier(&c);
    for (int64_t i = c.tid; i < o.B * o.HKV * rows; i += c.nthreads) {
      const int64_t head = i / rows;
      combine(o, head / o.HKV, head % o.HKV, i % rows, partials + i * pieces * partial_floats, pieces);
    }
  }

 private:
  // Query rows from `row` on, R at a time, then fewer.
  template <int R>
  static void passes(const Operands& o, int64_t b, int64_t hk, int64_t row, int64_t t, const float* queries,
                     float* scores, float* out, int64_t pieces) {
    if constexpr (R > 0) {
      for (; row + R <= o.rows(); row += R) tile<R>(o, b, hk, row, t, queries, scores, out, pieces);
      passes<R / 2>(o, b, hk, row, t, queries, scores, out, pieces);
    }
  }

  // R query rows against keys t .. t + Keys - 1.
  template <int R>
  static AP_NOINLINE void tile(const Operands& o, int64_t b, int64_t hk, int64_t row, int64_t t, const float* queries,
                               float* scores, float* out, int64_t pieces) {
    const int64_t count = min64(Keys, o.T - t);
    const float* q = queries + row * kQueryFloats;
    for (int64_t first = 0; first < count; first += V::W) {
      V part[R][V::W];
      const int64_t valid = min64(V::W, count - first);
      const KV* key = o.key(b, hk, t + first);
      for (int64_t i = 0; i < valid; ++i, key += o.k_stride[2]) {
        V acc[R];
        for (int r = 0; r < R; ++r) acc[r] = V(0.f);
        for (int d = 0; d < D; d += V::W) {
          const V x = load_part<D>(key, d);
          for (int r = 0; r < R; ++r) acc[r] = fma(x, load(q + r * kQueryFloats + d), acc[r]);
        }
        for (int r = 0; r < R; ++r) part[r][i] = acc[r];
      }
      for (int r = 0; r < R; ++r) {
        for (int64_t i = valid; i < V::W; ++i) part[r][i] = V(0.f);
        store(scores + r * Keys + first, reduce_rows(part[r]));
      }
    }
    for (int r = 0; r < R; ++r) {
      float* sum = out + (row + r) * pieces * partial_floats + kWidth * V::W;
      softmax(scores + r * Keys, count, o.limit(row + r) - t, sum);
    }
    float* to = out + row * pieces * partial_floats;
    constexpr int whole = kWidth / kPart * kPart;
    for (int w = 0; w < whole; w += kPart) weigh<R, kPart>(o, b, hk, t, count, w, scores, to, pieces);
    if constexpr (whole < kWidth) weigh<R, kWidth - whole>(o, b, hk, t, count, whole, scores, to, pieces);
  }

  // Turns scores into exp(score - maximum); 0 from `seen` on. sum[0] = maximum, sum[1] = sum of the exponentials.
  static void softmax(float* scores, int64_t count, int64_t seen, float* sum) {
    const V none(-__builtin_inff());
    V most = none;
    for (int64_t i = 0; i < Keys; i += V::W) {
      const int64_t visible = min64(count, seen) - i;
      if (visible < V::W) mask(scores + i, max64(visible, 0));
      most = vmax(most, load(scores + i));
    }
    const float maximum = hmax(most);
    const V offset(maximum == -__builtin_inff() ? 0.f : maximum);
    V total(0.f);
    for (int64_t i = 0; i < Keys; i += V::W) {
      const V e = vexp(load(scores + i) - offset);
      store(scores + i, e);
      total += e;
    }
    sum[0] = maximum;
    sum[1] = hsum(total);
  }

  static void mask(float* scores, int64_t first) {
    for (int64_t i = first; i < V::W; ++i) scores[i] = -__builtin_inff();
  }

  // Sums the values, each times its weight, over Count vectors from vector w on.
  template <int R, int Count>
  static void weigh(const Operands& o, int64_t b, int64_t hk, int64_t t, int64_t count, int w, const float* weights,
                    float* out, int64_t pieces) {
    V acc[R][Count];
    for (int r = 0; r < R; ++r)
      for (int i = 0; i < Count; ++i) acc[r][i] = V(0.f);
    const KV* value = o.value(b, hk, t);
    for (int64_t j = 0; j < count; ++j, value += o.v_stride[2]) {
      V x[Count];
      for (int i = 0; i < Count; ++i) x[i] = load_part<DV>(value, (w + i) * V::W);
      for (int r = 0; r < R; ++r) {
        const V weight(weights[r * Keys + j]);
        for (int i = 0; i < Count; ++i) acc[r][i] = fma(weight, x[i], acc[r][i]);
      }
    }
    for (int r = 0; r < R; ++r)
      for (int i = 0; i < Count; ++i) store(out + r * pieces * partial_floats + (w + i) * V::W, acc[r][i]);
  }

  static void combine(const Operands& o, int64_t b, int64_t hk, int64_t row, const float* partials, int64_t pieces) {
    constexpr int at = kWidth * V::W;
    float maximum = partials[at];
    for (int64_t p = 1; p < pieces; ++p) {
      const float other = partials[p * partial_floats + at];
      maximum = other > maximum || other != other ? other : maximum;
    }
    V acc[kWidth];
    for (int i = 0; i < kWidth; ++i) acc[i] = V(0.f);
    float total = 0.f;
    for (int64_t p = 0; p < pieces; ++p) {
      const float* from = partials + p * partial_floats;
      const V weight = vexp(V(from[at] - maximum));
      total += weight.v[0] * from[at + 1];
      for (int i = 0; i < kWidth; ++i) acc[i] = fma(weight, load(from + i * V::W), acc[i]);
    }
    alignas(64) float result[kWidth * V::W];
    for (int i = 0; i < kWidth; ++i) store(result + i * V::W, acc[i]);
    o.store_row(b, hk, row, result, 1.f / total);
  }
};

}  // namespace ap
