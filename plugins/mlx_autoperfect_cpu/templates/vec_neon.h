// 4 lanes: NEON on AArch64.
#pragma once
#include <arm_neon.h>
#define AP_LANES 4
#include "vec_ext.h"

namespace ap {

AP_INLINE V fma(V a, V b, V c) { return vfloat_t(vfmaq_f32(float32x4_t(c.v), float32x4_t(a.v), float32x4_t(b.v))); }
AP_INLINE V vsqrt(V a) { return vfloat_t(vsqrtq_f32(float32x4_t(a.v))); }

AP_INLINE V load(const f16* p) {
  return vfloat_t(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16((const uint16_t*)p))));
}
AP_INLINE V load(const bf16* p) {
  return vfloat_t(vreinterpretq_f32_u32(vshll_n_u16(vld1_u16((const uint16_t*)p), 16)));
}
AP_INLINE void store(f16* p, V a) {
  vst1_u16((uint16_t*)p, vreinterpret_u16_f16(vcvt_f16_f32(float32x4_t(a.v))));
}
AP_INLINE void store(bf16* p, V a) { vst1_u16((uint16_t*)p, vmovn_u32(uint32x4_t(bf16_bits(a).v))); }

#define AP_GENERIC_TAILS 1
#define AP_GENERIC_UNPACK 1
#define AP_GENERIC_SPREAD 1

}  // namespace ap
