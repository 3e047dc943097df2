// 16 lanes: AVX-512 F, BW, DQ, VL.
#pragma once
#if defined(__GNUC__) && !defined(__clang__)
// g++ 12 warns inside its own AVX-512 header.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>
#define AP_LANES 16
#include "vec_ext.h"

namespace ap {

AP_INLINE V fma(V a, V b, V c) { return _mm512_fmadd_ps(a.v, b.v, c.v); }  // a * b + c
AP_INLINE V vsqrt(V a) { return _mm512_sqrt_ps(a.v); }
// p * 2^n for whole n.
AP_INLINE V vldexp(V p, V n, VI) { return _mm512_scalef_ps(p.v, n.v); }

AP_INLINE __mmask16 first_lanes(int n) { return __mmask16((1u << n) - 1); }

AP_INLINE V load(const f16* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
AP_INLINE V widen_bf16(__m256i h) { return V(_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16))); }
AP_INLINE V load(const bf16* p) { return widen_bf16(_mm256_loadu_si256((const __m256i*)p)); }
AP_INLINE V load(const float* p, int n) { return _mm512_maskz_loadu_ps(first_lanes(n), p); }
AP_INLINE V load(const f16* p, int n) { return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_lanes(n), p)); }
AP_INLINE V load(const bf16* p, int n) { return widen_bf16(_mm256_maskz_loadu_epi16(first_lanes(n), p)); }
AP_INLINE VI load_words(const uint32_t* p, int n) { return vuint_t(_mm512_maskz_loadu_epi32(first_lanes(n), p)); }

AP_INLINE __m256i narrow(f16, V a) { return _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT); }
AP_INLINE __m256i narrow(bf16, V a) { return _mm512_cvtepi32_epi16(__m512i(bf16_bits(a).v)); }
AP_INLINE void store(f16* p, V a) { _mm256_storeu_si256((__m256i*)p, narrow(f16{}, a)); }
AP_INLINE void store(bf16* p, V a) { _mm256_storeu_si256((__m256i*)p, narrow(bf16{}, a)); }
AP_INLINE void store(float* p, V a, int n) { _mm512_mask_storeu_ps(p, first_lanes(n), a.v); }
AP_INLINE void store(f16* p, V a, int n) { _mm256_mask_storeu_epi16(p, first_lanes(n), narrow(f16{}, a)); }
AP_INLINE void store(bf16* p, V a, int n) { _mm256_mask_storeu_epi16(p, first_lanes(n), narrow(bf16{}, a)); }

// Field J of Bits bits of every word, as float. A permute reads only the low four bits of its index, so a 4-bit field
// needs a shift and a table; a byte needs a byte shuffle and a conversion.
template <int Bits, int J> AP_INLINE V unpack(VI w) {
  if constexpr (Bits == 4) {
    const __m512 digits = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_permutexvar_ps(_mm512_srli_epi32(__m512i(w.v), 4 * J), digits);
  } else {
    const __m512i pick = _mm512_maskz_mov_epi8(0x1111111111111111u, _mm512_add_epi8(_mm512_set1_epi8(J),
        _mm512_broadcast_i32x4(_mm_setr_epi32(0, 4, 8, 12))));
    return _mm512_cvtepi32_ps(_mm512_maskz_shuffle_epi8(0x1111111111111111u, __m512i(w.v), pick));
  }
}

// Spreads values of consecutive groups over words: lane i of word block `block` (V::W words) gets the value of the
// group of Words words that word block * W + i belongs to. V::W groups are held.
template <int Words> struct Spread {
  __m512 values;
  AP_INLINE void set(V a) { values = a.v; }
  AP_INLINE V operator()(int64_t block) const {
    constexpr int per_block = Words < 16 ? 16 / Words : 1;
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const int first = int(Words < 16 ? block * per_block : block * 16 / Words);
    const __m512i within = Words < 16 ? _mm512_srli_epi32(lane, __builtin_ctz(Words)) : _mm512_setzero_si512();
    return _mm512_permutexvar_ps(_mm512_add_epi32(within, _mm512_set1_epi32(first)), values);
  }
};

}  // namespace ap
