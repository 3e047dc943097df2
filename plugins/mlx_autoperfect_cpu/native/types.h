// What the source of a cpu_kernel can use besides C++ itself: 16-bit floating-point numbers and the
// position of a thread in the grid.
#pragma once
#include <bit>
#include <cstdint>
#include <type_traits>

#include "abi.h"

struct uint3 {
  uint32_t x, y, z;
};

namespace ap_types {

// IEEE binary16, converted by the processor where the compiler knows the type.
struct HalfBits {
#if defined(__FLT16_MAX__) && !defined(AP_SOFT_HALF)
  static float widen(uint16_t bits) { return static_cast<float>(std::bit_cast<_Float16>(bits)); }
  static uint16_t narrow(float value) { return std::bit_cast<uint16_t>(static_cast<_Float16>(value)); }
#else
  static float widen(uint16_t bits) {
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
    const uint32_t magnitude = bits & 0x7fff;
    if (magnitude < 0x0400) {  // zero and subnormal numbers: a multiple of 2^-24
      const float value = static_cast<float>(magnitude) * 0x1p-24f;
      return std::bit_cast<float>(std::bit_cast<uint32_t>(value) | sign);
    }
    const uint32_t rebias = magnitude >= 0x7c00 ? 0x70000000u : 0x38000000u;
    return std::bit_cast<float>((magnitude << 13) + rebias | sign);
  }
  static uint16_t narrow(float value) {
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
    const uint32_t magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return sign | 0x7e00;
    if (magnitude >= 0x477ff000) return sign | 0x7c00;  // rounds to 2^16 or more
    if (magnitude < 0x38800000) {                       // subnormal: adding 1/2 leaves the rounded bits at the end
      const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
      return sign | static_cast<uint16_t>(std::bit_cast<uint32_t>(shifted) - 0x3f000000);
    }
    const uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
    return sign | static_cast<uint16_t>((rounded - 0x38000000) >> 13);
  }
#endif
};

// The upper half of an IEEE binary32, rounded to nearest even.
struct BrainBits {
  static float widen(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
  static uint16_t narrow(float value) {
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16 | 0x40);
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  }
};

// Two bytes that compute as a float.
template <typename Format>
struct Narrow {
  uint16_t bits;

  Narrow() = default;
  template <typename Number, typename = std::enable_if_t<std::is_arithmetic_v<Number>>>
  Narrow(Number value) : bits(Format::narrow(static_cast<float>(value))) {}
  template <typename Other>
  explicit Narrow(Narrow<Other> other) : Narrow(static_cast<float>(other)) {}

  operator float() const { return Format::widen(bits); }
  Narrow& operator+=(float value) { return *this = *this + value; }
  Narrow& operator-=(float value) { return *this = *this - value; }
  Narrow& operator*=(float value) { return *this = *this * value; }
  Narrow& operator/=(float value) { return *this = *this / value; }
};

// The value that an output is filled with: `whole` for integers, the bits of a double for the rest.
template <typename T>
T initial(int64_t whole, int64_t real_bits) {
  if constexpr (std::is_integral_v<T>) return static_cast<T>(whole);
  else return T(static_cast<float>(std::bit_cast<double>(real_bits)));
}
template <>
inline double initial<double>(int64_t, int64_t real_bits) {
  return std::bit_cast<double>(real_bits);
}

// This thread's share of filling `count` elements.
template <typename T>
void fill(const ap_ctx* c, const ap_array& array, T value) {
  int64_t count = 1;
  for (int64_t axis = 0; axis < array.ndim; ++axis) count *= array.shape[axis];
  T* data = static_cast<T*>(array.data);
  for (int64_t i = count * c->tid / c->nthreads; i < count * (c->tid + 1) / c->nthreads; ++i) data[i] = value;
}

// Calls point(position) for this thread's share of the grid, x fastest.
template <typename Point>
void for_each_point(const ap_ctx* c, uint3 grid, const Point& point) {
  const int64_t row = grid.x;
  const int64_t plane = row * grid.y;
  const int64_t total = plane * grid.z;
  const int64_t pieces = static_cast<int64_t>(c->nthreads) * 8;
  const int64_t share = (total + pieces - 1) / pieces;
  for (int64_t begin; share > 0 && (begin = ap_next_chunk(c) * share) < total;) {
    const int64_t end = begin + share < total ? begin + share : total;
    for (int64_t i = begin; i < end;) {
      const int64_t x = i % row;
      const int64_t count = row - x < end - i ? row - x : end - i;
      const auto y = static_cast<uint32_t>(i / row % grid.y);
      const auto z = static_cast<uint32_t>(i / plane);
      for (int64_t k = 0; k < count; ++k) point(uint3{static_cast<uint32_t>(x + k), y, z});
      i += count;
    }
  }
}

}  // namespace ap_types

using float16_t = ap_types::Narrow<ap_types::HalfBits>;
using bfloat16_t = ap_types::Narrow<ap_types::BrainBits>;
