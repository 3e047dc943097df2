// The kernel that writes new rows into a cache: in[0] is [B, H, L, D], out[0] the buffer [B, H, C, D], and the rows go to
// positions symbols[1] .. symbols[1] + L - 1.
#pragma once
#include <cstring>
#include <stdexcept>

#include "abi.h"

namespace autoperfect {

template <int ItemSize> void append_rows(const ap_ctx* c) {
  const ap_array &from = c->in[0], &to = c->out[0];
  const int64_t heads = from.shape[1], rows = from.shape[2], bytes = int64_t(from.shape[3]) * ItemSize;
  const int64_t total = from.shape[0] * heads * rows, offset = c->symbols[1];
  const char* source = static_cast<const char*>(from.data);
  char* target = static_cast<char*>(to.data);
  for (int64_t i = total * c->tid / c->nthreads; i < total * (c->tid + 1) / c->nthreads; ++i) {
    const int64_t row = i % rows, head = i / rows % heads, batch = i / rows / heads;
    const int64_t a = batch * from.strides[0] + head * from.strides[1] + row * from.strides[2];
    const int64_t b = batch * to.strides[0] + head * to.strides[1] + (offset + row) * to.strides[2];
    std::memcpy(target + b * ItemSize, source + a * ItemSize, bytes);
  }
}

inline ap_kernel append_kernel(int32_t itemsize) {
  if (itemsize == 2) return append_rows<2>;
  if (itemsize == 4) return append_rows<4>;
  throw std::invalid_argument("a cache holds elements of 2 or 4 bytes");
}

}  // namespace autoperfect
