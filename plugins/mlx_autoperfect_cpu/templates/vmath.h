// Elementary functions on vectors, for every f32 including infinities, NaN, zeros and subnormals. Polynomials are
// minimax fits of the named function over the named interval. Worst errors, in units of the last place: see the tests.
#pragma once
#include "vec.h"

namespace ap {

// c[0] + c[1] x + ... by Horner's rule.
template <int Count> AP_INLINE V horner(V x, const float (&c)[Count]) {
  V r(c[Count - 1]);
#pragma GCC unroll 16
  for (int i = Count - 2; i >= 0; --i) r = fma(r, x, V(c[i]));
  return r;
}

#if !defined(__AVX512F__) || defined(AP_ISA_PORTABLE)
// p * 2^n for whole n in [-252, 254], in two steps so that subnormal results round once more at most.
AP_INLINE V vldexp(V p, V, VI n) {
  const VI half = sra(n, 1);
  const V first = from_bits((half + VI(127u)) << 23), second = from_bits((n - half + VI(127u)) << 23);
  return p * first * second;
}
#endif

// e^x = 2^n e^r with |r| <= ln(2) / 2.
AP_INLINE V vexp(V x) {
  constexpr float quotient[] = {4.999999335e-01f, 1.666651913e-01f, 4.166840572e-02f, 8.368898669e-03f,
                                1.381422187e-03f};
  x = select(lt(x, V(-104.f)), V(-104.f), select(gt(x, V(89.f)), V(89.f), x));  // NaN passes
  const V shift(12582912.f);  // 1.5 * 2^23: adding it rounds to a whole number, which its low bits hold
  const V shifted = fma(x, V(1.44269504f), shift);
  const V n = shifted - shift;
  V r = fma(n, V(-6.93145752e-1f), x);  // ln 2 in two parts; n times the first is exact
  r = fma(n, V(-1.42860677e-6f), r);
  const V p = fma(r * r, horner(r, quotient), r) + V(1.f);
  return vldexp(p, n, to_bits(shifted) - to_bits(shift));
}

// Natural logarithm: x = 2^e m with m in [sqrt(1/2), sqrt(2)).
AP_INLINE V vlog(V x) {
  constexpr float series[] = {3.333331260e-01f,  -2.500000960e-01f, 2.000211866e-01f,
                              -1.666799585e-01f, 1.421955235e-01f,  -1.240558893e-01f,
                              1.188816232e-01f,  -1.167565177e-01f, 6.746640326e-02f};
  const VM tiny = lt(x, V(0x1p-126f));
  const V scaled = select(tiny, x * V(0x1p23f), x);
  const VI offset(0x3f3504f3u);  // the bits of sqrt(1/2)
  const VI u = to_bits(scaled) - offset;
  const V e = int_to_float(sra(u, 23)) - select(tiny, V(23.f), V(0.f));
  const V f = from_bits((u & VI(0x7fffffu)) + offset) - V(1.f);
  const V square = f * f;
  V r = fma(e, V(1.42860677e-6f), f * square * horner(f, series));
  r = fma(square, V(-0.5f), r) + f;
  r = fma(e, V(6.93145752e-1f), r);
  r = select(eq(x, V(__builtin_inff())), x, r);
  r = select(eq(x, V(0.f)), V(-__builtin_inff()), r);
  return select(ge(x, V(0.f)), r, V(__builtin_nanf("")));  // below zero, or NaN
}

AP_INLINE V vtanh(V x) {
  constexpr float series[] = {-3.333333102e-01f, 1.333321492e-01f, -5.394794916e-02f,
                              2.170751418e-02f,  -8.194984633e-03f, 2.159722178e-03f};
  const V a = vabs(x), square = x * x;
  const V small = fma(x * square, horner(square, series), x);
  const V large = V(1.f) - V(2.f) / (vexp(a + a) + V(1.f));
  return select(lt(a, V(0.62f)), small, vcopysign(large, x));
}

// erf(x): an odd polynomial below 1, 1 - e^q(|x|) above; it is 1 in f32 from 4 on.
AP_INLINE V verf(V x) {
  constexpr float small_series[] = {1.283791657e-01f,  -3.761262579e-01f, 1.128358490e-01f, -2.685380346e-02f,
                                    5.188313748e-03f, -8.010083348e-04f, 7.853525124e-05f};
  constexpr float log_erfc[] = {1.884685277e-04f,  -1.129580314e+00f, -6.332163920e-01f, -1.084221041e-01f,
                                2.521034231e-02f, -4.205285612e-03f, 4.414728096e-04f,  -2.169762642e-05f};
  const V magnitude = vabs(x), square = x * x;
  const V small = fma(x, horner(square, small_series), x);
  const V a = select(gt(magnitude, V(4.f)), V(4.f), magnitude);
  const V large = V(1.f) - vexp(horner(a, log_erfc));
  return select(lt(magnitude, V(1.f)), small, vcopysign(large, x));
}

// 1 / (1 + e^-x): 0 and 1 at the ends, without overflow.
AP_INLINE V vsigmoid(V x) { return V(1.f) / (V(1.f) + vexp(-x)); }

}  // namespace ap
