// 8 lanes: AVX2 with FMA and F16C.
#pragma once
#include <immintrin.h>
#define AP_LANES 8
#include "vec_ext.h"

namespace ap {

AP_INLINE V fma(V a, V b, V c) { return _mm256_fmadd_ps(a.v, b.v, c.v); }  // a * b + c
AP_INLINE V vsqrt(V a) { return _mm256_sqrt_ps(a.v); }

AP_INLINE __m256i first_lanes(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

AP_INLINE V load(const f16* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
AP_INLINE V load(const bf16* p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
}
AP_INLINE V load(const float* p, int n) { return _mm256_maskload_ps(p, first_lanes(n)); }
AP_INLINE V load(const f16* p, int n) { return n >= 8 ? load(p) : load_tail(p, n); }
AP_INLINE V load(const bf16* p, int n) { return n >= 8 ? load(p) : load_tail(p, n); }
AP_INLINE VI load_words(const uint32_t* p, int n) {
  return vuint_t(_mm256_maskload_epi32((const int*)p, first_lanes(n)));
}

AP_INLINE void store(f16* p, V a) { _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT)); }
AP_INLINE void store(bf16* p, V a) {
  const __m256i h = __m256i(bf16_bits(a).v);
  const __m256i pairs = _mm256_permute4x64_epi64(_mm256_packus_epi32(h, h), 0x88);
  _mm_storeu_si128((__m128i*)p, _mm256_castsi256_si128(pairs));
}
AP_INLINE void store(float* p, V a, int n) { _mm256_maskstore_ps(p, first_lanes(n), a.v); }
template <class T> AP_INLINE void store(T* p, V a, int n) {
  if (n >= 8) store(p, a);
  else store_tail(p, a, n);
}

#define AP_GENERIC_UNPACK 1

// See vec_avx512.h.
template <int Words> struct Spread {
  __m256 values;
  alignas(32) float memory[8];
  AP_INLINE void set(V a) {
    if constexpr (Words >= 8) store(memory, a);
    else values = a.v;
  }
  AP_INLINE V operator()(int64_t block) const {
    if constexpr (Words >= 8) return V(memory[block * 8 / Words]);
    else {
      const __m256i within = _mm256_srli_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), __builtin_ctz(Words));
      return _mm256_permutevar8x32_ps(values, _mm256_add_epi32(within, _mm256_set1_epi32(int(block * (8 / Words)))));
    }
  }
};

}  // namespace ap
