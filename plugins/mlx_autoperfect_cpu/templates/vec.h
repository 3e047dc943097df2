// Vectors of f32 lanes: arithmetic, comparison, memory access with conversion. The widest instruction set that the
// compiler's flags allow is used; AP_ISA_PORTABLE forces plain C++.
//
//   V            V::W lanes; V(float) broadcasts; + - * / and unary -
//   fma          a * b + c
//   load, store  from and to f16, bf16, f32 memory (round to nearest even); with n (0..W) only the first n lanes
//   lt ... eq    comparisons to a mask; select(mask, a, b)
//   hsum, hmax   over the lanes
// Transcendental functions: vmath.h.
#pragma once
#include "abi.h"
#if defined(AP_ISA_PORTABLE)
#include "vec_portable.h"
#elif defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include "vec_avx512.h"
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include "vec_avx2.h"
#elif defined(__aarch64__) && defined(__ARM_NEON)
#include "vec_neon.h"
#else
#include "vec_portable.h"
#endif

// Defines `name`, the kernel, and `name_scratch`, the bytes of scratch that it needs for the given sizes (each template
// lists its sizes and states the formula). __VA_ARGS__ is a template with run() and scratch_bytes().
#define AP_EXPORT extern "C" __attribute__((visibility("default")))
#define AP_KERNEL(name, ...)                                    \
  AP_EXPORT void name(const ap_ctx* c) { __VA_ARGS__::run(*c); } \
  AP_EXPORT int64_t name##_scratch(const int64_t* sizes) { return __VA_ARGS__::scratch_bytes(sizes); }

#define AP_NOINLINE __attribute__((noinline))

namespace ap {

#if defined(AP_GENERIC_TAILS)
template <class T> AP_INLINE V load(const T* p, int n) { return n >= V::W ? load(p) : load_tail(p, n); }
template <class T> AP_INLINE void store(T* p, V a, int n) {
  if (n >= V::W) store(p, a);
  else store_tail(p, a, n);
}
AP_INLINE VI load_words(const uint32_t* p, int n) {
  uint32_t lanes[V::W] = {};
  for (int i = 0; i < n && i < V::W; ++i) lanes[i] = p[i];
  return load_words(lanes);
}
#endif

#if defined(AP_GENERIC_UNPACK)
// Field J of Bits bits of every word, as float.
template <int Bits, int J> AP_INLINE V unpack(VI w) {
  return int_to_float((w >> (Bits * J)) & VI((1u << Bits) - 1));
}
#endif

#if defined(AP_GENERIC_SPREAD)
// See vec_avx512.h. A block of W words lies in one group here.
template <int Words> struct Spread {
  static_assert(Words >= V::W);
  float values[V::W];
  AP_INLINE void set(V a) { store(values, a); }
  AP_INLINE V operator()(int64_t block) const { return V(values[block * V::W / Words]); }
};
#endif

// 1 / sqrt(a), each step rounded correctly (no approximate reciprocal).
AP_INLINE V vrsqrt(V a) { return V(1.f) / vsqrt(a); }

// Calls f(std::integral_constant<int, I>) for I = 0 .. Count - 1.
template <class F, int... I> AP_INLINE void unroll_impl(F&& f, std::integer_sequence<int, I...>) {
  (f(std::integral_constant<int, I>{}), ...);
}
template <int Count, class F> AP_INLINE void unroll(F&& f) { unroll_impl(f, std::make_integer_sequence<int, Count>{}); }

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
constexpr int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

}  // namespace ap
