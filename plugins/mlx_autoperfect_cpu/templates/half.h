// 16-bit floating-point storage types and their scalar conversions (round to nearest even).
#pragma once
#include <bit>
#include <cstdint>
#if defined(__F16C__)
#include <immintrin.h>
#endif

// Kernels are loaded side by side and may define templates of equal name over different structs of equal name: nothing
// but the kernels' entry points may be visible outside. In force to the end of the translation unit.
#pragma GCC visibility push(hidden)

#define AP_INLINE inline __attribute__((always_inline))

namespace ap {

struct f16 { uint16_t bits; };   // IEEE binary16
struct bf16 { uint16_t bits; };  // upper half of a binary32
using f32 = float;

AP_INLINE float to_float(float x) { return x; }
AP_INLINE float to_float(bf16 x) { return std::bit_cast<float>(uint32_t(x.bits) << 16); }

AP_INLINE float to_float(f16 x) {
#if defined(__F16C__)
  return _cvtsh_ss(x.bits);
#else
  // Move exponent and mantissa into place, then fix the exponent's offset by a multiplication, which also normalises.
  const uint32_t magnitude = uint32_t(x.bits & 0x7fff) << 13;
  uint32_t u = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) * 0x1p112f);
  if (magnitude >= 0x0f800000u) u |= 0x7f800000u;  // inf, NaN
  return std::bit_cast<float>(u | uint32_t(x.bits & 0x8000) << 16);
#endif
}

template <class T> T from_float(float x);

template <> AP_INLINE float from_float<float>(float x) { return x; }

template <> AP_INLINE bf16 from_float<bf16>(float x) {
  const uint32_t u = std::bit_cast<uint32_t>(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {uint16_t(u >> 16 | 0x40)};  // keep a NaN a NaN
  return {uint16_t((u + 0x7fffu + (u >> 16 & 1)) >> 16)};
}

template <> AP_INLINE f16 from_float<f16>(float x) {
#if defined(__F16C__)
  return {uint16_t(_cvtss_sh(x, 0))};
#else
  const uint32_t u = std::bit_cast<uint32_t>(x), magnitude = u & 0x7fffffffu;
  const uint32_t sign = u >> 16 & 0x8000u;
  uint32_t h = 0x7c00u;                                          // 65520 and above round to infinity
  if (magnitude > 0x7f800000u) h = 0x7e00u;                      // NaN
  else if (magnitude < 0x38800000u)                              // subnormal: 0.5 has the ulp of the result
    h = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  else if (magnitude < 0x477ff000u) h = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1)) >> 13;
  return {uint16_t(h | sign)};
#endif
}

}  // namespace ap
