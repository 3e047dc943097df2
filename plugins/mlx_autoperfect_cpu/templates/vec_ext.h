// What every instruction set shares: a vector of AP_LANES floats on top of the compiler's vector extension (GCC and
// Clang). vec_avx512.h, vec_avx2.h, vec_neon.h and vec_portable.h define AP_LANES, include this file and add the rest:
// fma, vsqrt, memory access with conversion, unpack. Vector types never cross a function boundary that is not inlined.
#pragma once
#include <utility>

#include "half.h"

namespace ap {

typedef float vfloat_t __attribute__((vector_size(4 * AP_LANES)));
typedef int32_t vint_t __attribute__((vector_size(4 * AP_LANES)));
typedef uint32_t vuint_t __attribute__((vector_size(4 * AP_LANES)));

// Lanes of float.
struct V {
  static constexpr int W = AP_LANES;
  vfloat_t v;
  V() = default;
  AP_INLINE V(vfloat_t x) : v(x) {}
  AP_INLINE V(float x) : v(x - vfloat_t{}) {}  // x - 0 is x, also for -0
};

// Lanes of 32-bit words.
struct VI {
  vuint_t v;
  VI() = default;
  AP_INLINE VI(vuint_t x) : v(x) {}
  AP_INLINE VI(uint32_t x) : v(x - vuint_t{}) {}
};

// Lanes of true (all bits) or false (no bit).
struct VM {
  vint_t v;
};

AP_INLINE V operator+(V a, V b) { return a.v + b.v; }
AP_INLINE V operator-(V a, V b) { return a.v - b.v; }
AP_INLINE V operator*(V a, V b) { return a.v * b.v; }
AP_INLINE V operator/(V a, V b) { return a.v / b.v; }
AP_INLINE V operator-(V a) { return -a.v; }
AP_INLINE V& operator+=(V& a, V b) { return a = a + b; }
AP_INLINE V& operator-=(V& a, V b) { return a = a - b; }
AP_INLINE V& operator*=(V& a, V b) { return a = a * b; }

AP_INLINE VI operator+(VI a, VI b) { return a.v + b.v; }
AP_INLINE VI operator-(VI a, VI b) { return a.v - b.v; }
AP_INLINE VI operator&(VI a, VI b) { return a.v & b.v; }
AP_INLINE VI operator|(VI a, VI b) { return a.v | b.v; }
AP_INLINE VI operator^(VI a, VI b) { return a.v ^ b.v; }
AP_INLINE VI operator<<(VI a, int n) { return a.v << n; }
AP_INLINE VI operator>>(VI a, int n) { return a.v >> n; }                       // logical
AP_INLINE VI sra(VI a, int n) { return vuint_t(vint_t(a.v) >> n); }             // arithmetic
AP_INLINE VI to_bits(V a) { return vuint_t(a.v); }
AP_INLINE V from_bits(VI a) { return vfloat_t(a.v); }
AP_INLINE V int_to_float(VI a) { return __builtin_convertvector(vint_t(a.v), vfloat_t); }

AP_INLINE VM lt(V a, V b) { return {a.v < b.v}; }
AP_INLINE VM le(V a, V b) { return {a.v <= b.v}; }
AP_INLINE VM gt(V a, V b) { return {a.v > b.v}; }
AP_INLINE VM ge(V a, V b) { return {a.v >= b.v}; }
AP_INLINE VM eq(V a, V b) { return {a.v == b.v}; }
AP_INLINE VM ne(V a, V b) { return {a.v != b.v}; }
AP_INLINE VM int_gt(VI a, VI b) { return {vint_t(a.v) > vint_t(b.v)}; }
AP_INLINE VM operator&(VM a, VM b) { return {a.v & b.v}; }
AP_INLINE VM operator|(VM a, VM b) { return {a.v | b.v}; }
AP_INLINE VM operator~(VM a) { return {~a.v}; }
AP_INLINE V select(VM m, V a, V b) { return m.v ? a.v : b.v; }                  // m ? a : b, lane by lane
AP_INLINE VI select(VM m, VI a, VI b) { return m.v ? a.v : b.v; }

// Minimum and maximum that return NaN when an operand is NaN, as MLX's do.
AP_INLINE V vmin(V a, V b) { return select(lt(a, b) | ne(a, a), a, b); }
AP_INLINE V vmax(V a, V b) { return select(gt(a, b) | ne(a, a), a, b); }
AP_INLINE V vabs(V a) { return from_bits(to_bits(a) & VI(0x7fffffffu)); }
// |a| with the sign of s.
AP_INLINE V vcopysign(V a, V s) { return from_bits((to_bits(a) & VI(0x7fffffffu)) | (to_bits(s) & VI(0x80000000u))); }

template <class Index, std::size_t... I>
AP_INLINE vfloat_t shuffle_impl(vfloat_t a, vfloat_t b, std::index_sequence<I...>) {
  return __builtin_shufflevector(a, b, Index::at(I)...);
}
// Lane i of the result is lane Index::at(i) of a (0..W-1) or b (W..2W-1).
template <class Index> AP_INLINE V shuffle(V a, V b) {
  return shuffle_impl<Index>(a.v, b.v, std::make_index_sequence<V::W>{});
}

template <int First> struct EverySecond { static constexpr int at(int i) { return 2 * i + First; } };
template <int First> struct Zip { static constexpr int at(int i) { return First + i / 2 + (i & 1) * V::W; } };
template <int By> struct Rotate { static constexpr int at(int i) { return (i + By) % V::W; } };

AP_INLINE V even(V a, V b) { return shuffle<EverySecond<0>>(a, b); }
AP_INLINE V odd(V a, V b) { return shuffle<EverySecond<1>>(a, b); }

template <int By = V::W / 2> AP_INLINE float hsum(V a) {
  if constexpr (By == 0) return a.v[0];
  else return hsum<By / 2>(a + shuffle<Rotate<By>>(a, a));
}
template <int By = V::W / 2> AP_INLINE float hmax(V a) {
  if constexpr (By == 0) return a.v[0];
  else return hmax<By / 2>(vmax(a, shuffle<Rotate<By>>(a, a)));
}

// Lane i of the result is the sum of the lanes of rows[i]. Overwrites rows.
template <int Count = V::W> AP_INLINE V reduce_rows(V* rows) {
  if constexpr (Count == 1) return rows[0];
  else {
#pragma GCC unroll 16
    for (int i = 0; i < Count / 2; ++i)
      rows[i] = even(rows[2 * i], rows[2 * i + 1]) + odd(rows[2 * i], rows[2 * i + 1]);
    return reduce_rows<Count / 2>(rows);
  }
}

// Transposes a W x W tile in place: log2(W) perfect shuffles.
template <int Stage = V::W> AP_INLINE void transpose(V* rows) {
  if constexpr (Stage > 1) {
    V next[V::W];
#pragma GCC unroll 16
    for (int i = 0; i < V::W / 2; ++i) {
      next[2 * i] = shuffle<Zip<0>>(rows[i], rows[i + V::W / 2]);
      next[2 * i + 1] = shuffle<Zip<V::W / 2>>(rows[i], rows[i + V::W / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < V::W; ++i) rows[i] = next[i];
    transpose<Stage / 2>(rows);
  }
}

// From Count vectors that hold x[0], x[1], ... in order to out[j] = x[j], x[j + Count], x[j + 2 * Count], ...
template <int Count> AP_INLINE void deinterleave(const V* in, V* out, int step = 1) {
  if constexpr (Count == 1) out[0] = in[0];
  else {
    V evens[Count / 2], odds[Count / 2];
#pragma GCC unroll 16
    for (int i = 0; i < Count / 2; ++i) {
      evens[i] = even(in[2 * i], in[2 * i + 1]);
      odds[i] = odd(in[2 * i], in[2 * i + 1]);
    }
    deinterleave<Count / 2>(evens, out, 2 * step);
    deinterleave<Count / 2>(odds, out + step, 2 * step);
  }
}

// For memory of any alignment.
typedef float vfloat_memory_t __attribute__((vector_size(4 * AP_LANES), aligned(4), may_alias));
typedef uint32_t vuint_memory_t __attribute__((vector_size(4 * AP_LANES), aligned(4), may_alias));

AP_INLINE V load(const float* p) { return vfloat_t(*reinterpret_cast<const vfloat_memory_t*>(p)); }
AP_INLINE void store(float* p, V a) { *reinterpret_cast<vfloat_memory_t*>(p) = a.v; }
AP_INLINE VI load_words(const uint32_t* p) { return vuint_t(*reinterpret_cast<const vuint_memory_t*>(p)); }

// The first n lanes of memory, the rest 0; never touches memory beyond them.
template <class T> AP_INLINE V load_tail(const T* p, int n) {
  T lanes[V::W] = {};
  for (int i = 0; i < n; ++i) lanes[i] = p[i];
  return load(static_cast<const T*>(lanes));
}
template <class T> AP_INLINE void store_tail(T* p, V a, int n) {
  T lanes[V::W];
  store(lanes, a);
  for (int i = 0; i < n; ++i) p[i] = lanes[i];
}

// bf16 bits of each lane in the lower half of a word, and back.
AP_INLINE VI bf16_bits(V a) {
  const VI u = to_bits(a);
  return select(ne(a, a), (u >> 16) | VI(0x40u), (u + VI(0x7fffu) + ((u >> 16) & VI(1u))) >> 16);
}
AP_INLINE V bf16_value(VI h) { return from_bits(h << 16); }

AP_INLINE void prefetch(const void* p) { __builtin_prefetch(p, 0, 3); }

}  // namespace ap
