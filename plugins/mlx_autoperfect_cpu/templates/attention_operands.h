// Operands and schedule of attention.h.
#pragma once
#include "vmath.h"

namespace ap {

// The vector at element d of a row of Width elements; its last vector may be a part.
template <int Width, class T> AP_INLINE V load_part(const T* p, int d) {
  if constexpr (Width % V::W == 0) return load(p + d);
  else return load(p + d, Width - d < V::W ? Width - d : V::W);
}

// Element types of the queries, of keys and values, and of the output.
template <class Q, class KV, class Out> struct AttnTypes {
  using q = Q;
  using kv = KV;
  using out = Out;
};

// Knobs:
//   Queries       query rows that share a pass over keys when decoding: 1..4; best the number of query heads per key
//                 head, or a divisor of it
//   Keys          keys per unit of work when decoding, a multiple of 16 (32..512): fixes the order of summation
//   DecodeLength  largest L that counts as decoding (1..16)
//   TileRows      query rows per unit of work in prefill, a multiple of 12 (12..96)
//   TileKeys      keys per step in prefill, a multiple of 32 (32..128)
template <int Queries_ = 4, int Keys_ = 64, int DecodeLength_ = 8, int TileRows_ = 48, int TileKeys_ = 64>
struct AttentionSchedule {
  static constexpr int Queries = Queries_, Keys = Keys_, DecodeLength = DecodeLength_;
  static constexpr int TileRows = TileRows_, TileKeys = TileKeys_;
  static_assert(Queries >= 1 && Queries <= 4 && Keys % 16 == 0 && TileRows % 12 == 0 && TileKeys % 32 == 0);
};

// Ops has static constexpr int q, k, v (indices in c.in), out (in c.out) and static constexpr float scale; it may have
//   static constexpr bool QBLHD = true;     c.in[q] is row-contiguous [B, L, H * D] (last axis split further or not)
//   static constexpr bool OutBLHD = true;   c.out[out] is row-contiguous [B, L, H * DV] whatever its stated strides
template <class Types_, int D_, int DV_, bool Causal_, class Ops> struct AttentionOperands {
  using Types = Types_;
  using Q = typename Types::q;
  using KV = typename Types::kv;
  using Out = typename Types::out;
  static constexpr int D = D_, DV = DV_;
  static constexpr bool Causal = Causal_;
  static constexpr float scale = Ops::scale;
  static_assert(D % 8 == 0 && DV % 8 == 0 && D <= 256 && DV <= 256);

  const Q* q;
  const KV *k, *v;
  Out* out;
  int64_t B, H, HKV, L, T, group;
  int64_t q_stride[3], k_stride[3], v_stride[3], out_stride[3];  // batch, head, position

  explicit AttentionOperands(const ap_ctx& c) {
    const ap_array &aq = c.in[Ops::q], &ak = c.in[Ops::k], &av = c.in[Ops::v], &ao = c.out[Ops::out];
    q = static_cast<const Q*>(aq.data);
    k = static_cast<const KV*>(ak.data);
    v = static_cast<const KV*>(av.data);
    out = static_cast<Out*>(ao.data);
    B = ak.shape[0], HKV = ak.shape[1], T = ak.shape[2];
    if constexpr (requires { requires Ops::QBLHD; }) {
      L = aq.shape[1], H = 1;
      for (int64_t i = 2; i < aq.ndim; ++i) H *= aq.shape[i];
      H /= D;
      q_stride[0] = L * H * D, q_stride[1] = D, q_stride[2] = H * D;
    } else {
      H = aq.shape[1], L = aq.shape[2];
      for (int i = 0; i < 3; ++i) q_stride[i] = aq.strides[i];
    }
    for (int i = 0; i < 3; ++i) k_stride[i] = ak.strides[i], v_stride[i] = av.strides[i];
    if constexpr (requires { requires Ops::OutBLHD; }) {
      out_stride[0] = L * H * DV, out_stride[1] = DV, out_stride[2] = H * DV;
    } else {
      for (int i = 0; i < 3; ++i) out_stride[i] = ao.strides[i];
    }
    group = H / HKV;
  }

  // Query rows of one key head are numbered l * group + g.
  int64_t rows() const { return L * group; }
  // Keys that a query row sees.
  int64_t limit(int64_t row) const { return Causal ? T - L + row / group + 1 : T; }

  const KV* key(int64_t b, int64_t head, int64_t t) const {
    return k + b * k_stride[0] + head * k_stride[1] + t * k_stride[2];
  }
  const KV* value(int64_t b, int64_t head, int64_t t) const {
    return v + b * v_stride[0] + head * v_stride[1] + t * v_stride[2];
  }

  // A query row in f32, times scale, padded with zeros to round_up(D, V::W).
  void load_query(int64_t b, int64_t head, int64_t row, float* dst) const {
    const Q* p = q + b * q_stride[0] + (head * group + row % group) * q_stride[1] + row / group * q_stride[2];
    for (int d = 0; d < D; d += V::W) store(dst + d, load_part<D>(p, d) * V(scale));
  }

  // Stores x[0 .. DV) * factor.
  void store_row(int64_t b, int64_t head, int64_t row, const float* x, float factor) const {
    Out* p = out + b * out_stride[0] + (head * group + row % group) * out_stride[1] + row / group * out_stride[2];
    for (int d = 0; d < DV; d += V::W) store(p + d, load(x + d) * V(factor), DV - d < V::W ? DV - d : V::W);
  }
};

}  // namespace ap
