// Attention of query heads over a key/value cache: softmax(scale * q k^T) v, with grouped heads and an optional
// causal mask.
//
// Operands: q [B, H, L, D], k [B, HKV, T, D], v [B, HKV, T, DV], each with any strides but 1 on the last axis; output
// [B, H, L, DV]. H is a multiple of HKV; query head h uses key head h / (H / HKV). Causal: query l sees keys
// 0 .. T - L + l.
//
// Few queries (decoding): attention_decode.h. Many (prefill): attention_prefill.h. Both compute in f32, subtract the
// maximum before the exponential, and give results that depend on the shapes only, never on the number of threads.
#pragma once
#include "attention_decode.h"
#include "attention_prefill.h"

namespace ap {

// sizes: {B, H, HKV, L, T, threads}. scratch_bytes = 4 * (threads * thread_floats + B * H * min(L, DecodeLength) *
// ceil(T / Keys) * partial_floats), at most c0 + c1 * T for given B, H, L, threads.
template <class Types, int D, int DV, bool Causal, class Schedule, class Ops> struct Attention {
  using Operands = AttentionOperands<Types, D, DV, Causal, Ops>;
  using Decode = AttentionDecode<Operands, Schedule>;
  using Prefill = AttentionPrefill<Operands, Schedule>;

  static constexpr int64_t scratch_bytes(const int64_t* sizes) {
    const int64_t B = sizes[0], H = sizes[1], HKV = sizes[2], L = sizes[3], T = sizes[4], threads = sizes[5];
    return 4 * (L <= Schedule::DecodeLength ? Decode::scratch_floats(B, H, HKV, L, T, threads)
                                            : Prefill::scratch_floats(threads));
  }

  static void run(const ap_ctx& c) {
    const Operands operands(c);
    if (operands.L <= Schedule::DecodeLength) Decode::run(c, operands);
    else Prefill::run(c, operands);
  }
};

}  // namespace ap
