// 4 lanes: plain C++ with the compiler's vector extension, on any processor.
#pragma once
#define AP_LANES 4
#include "vec_ext.h"

namespace ap {

AP_INLINE V fma(V a, V b, V c) { return a * b + c; }  // one rounding or two: what the processor has
AP_INLINE V vsqrt(V a) {
  for (int i = 0; i < V::W; ++i) a.v[i] = __builtin_sqrtf(a.v[i]);
  return a;
}

// f16 bits in the lower half of each word to float and back; half.h explains the steps.
AP_INLINE V f16_value(VI h) {
  const VI magnitude = (h & VI(0x7fffu)) << 13;
  const VI scaled = to_bits(from_bits(magnitude) * V(0x1p112f));
  const VI u = select(int_gt(magnitude, VI(0x0f7fffffu)), scaled | VI(0x7f800000u), scaled);
  return from_bits(u | (h & VI(0x8000u)) << 16);
}
AP_INLINE VI f16_bits(V a) {
  const VI magnitude = to_bits(a) & VI(0x7fffffffu);
  const VI normal = (magnitude - VI(0x38000000u) + VI(0xfffu) + ((magnitude >> 13) & VI(1u))) >> 13;
  const VI subnormal = to_bits(from_bits(magnitude) + V(0.5f)) - VI(0x3f000000u);
  VI h = select(int_gt(VI(0x38800000u), magnitude), subnormal, normal);
  h = select(int_gt(magnitude, VI(0x477fefffu)), VI(0x7c00u), h);
  h = select(int_gt(magnitude, VI(0x7f800000u)), VI(0x7e00u), h);
  return h | (to_bits(a) >> 16 & VI(0x8000u));
}

AP_INLINE VI widen(const uint16_t* p) {
  typedef uint16_t half_t __attribute__((vector_size(2 * V::W)));
  half_t h;
  __builtin_memcpy(&h, p, sizeof h);
  return __builtin_convertvector(h, vuint_t);
}
AP_INLINE void narrow(uint16_t* p, VI a) {
  typedef uint16_t half_t __attribute__((vector_size(2 * V::W)));
  const half_t h = __builtin_convertvector(a.v, half_t);
  __builtin_memcpy(p, &h, sizeof h);
}
AP_INLINE V load(const f16* p) { return f16_value(widen(&p->bits)); }
AP_INLINE V load(const bf16* p) { return bf16_value(widen(&p->bits)); }
AP_INLINE void store(f16* p, V a) { narrow(&p->bits, f16_bits(a)); }
AP_INLINE void store(bf16* p, V a) { narrow(&p->bits, bf16_bits(a)); }

#define AP_GENERIC_TAILS 1
#define AP_GENERIC_UNPACK 1
#define AP_GENERIC_SPREAD 1

}  // namespace ap
