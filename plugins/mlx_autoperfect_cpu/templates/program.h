// What generated row programs use besides the vectors: the loop over a row, and tails that do not
// disturb a reduction.
#pragma once
#include <cmath>

#include "vmath.h"

namespace ap {

// Calls f(k) for every full vector of a row of `width` elements, then f(k, count) for the rest.
template <class F> AP_INLINE void for_row(int64_t width, F&& f) {
  int64_t k = 0;
  for (; k + V::W <= width; k += V::W) f(k);
  if (k < width) f(k, int(width - k));
}

// The value as it is, in a full vector.
AP_INLINE V keep(V v, float) { return v; }

// The first n lanes of v; `neutral` in the others.
AP_INLINE V keep(V v, float neutral, int n) {
  float lanes[V::W];
  store(lanes, v);
  for (int i = n; i < V::W; ++i) lanes[i] = neutral;
  return load(lanes);
}

}  // namespace ap
