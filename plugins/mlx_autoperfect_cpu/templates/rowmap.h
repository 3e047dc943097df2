// Row-wise work over two axes: a (position) and b (head), for instance q/k norm and rotary embedding.
//
// A job has its own number of heads:
//   static inline int64_t heads(const ap_ctx& c);
//   static inline void row(const ap_ctx& c, int64_t a, int64_t b, float* tmp);   tmp: Width + 64 floats of this thread
// a runs over c.symbols[0] rows. Neighbouring heads of one position run on the same thread, which shares its RopeTable.
#pragma once
#include "rope.h"

namespace ap {

// Knobs:
//   Width    widest row, in floats
//   Grain    rows that a thread must get before another thread is used (1..64): small maps stay on few threads
template <int Width_, int Grain_ = 2> struct RowMapSchedule {
  static constexpr int Width = Width_, Grain = Grain_;
};

// scratch_bytes({threads}) = 4 * threads * round_up(Width + 64, 16): c0 alone.
template <class Schedule, class... Jobs> struct RowMap {
  static constexpr int64_t kStride = round_up(Schedule::Width + 64, 16);

  static constexpr int64_t scratch_bytes(const int64_t* sizes) { return 4 * sizes[0] * kStride; }

  static void run(const ap_ctx& c) {
    const int64_t heads = (Jobs::heads(c) + ...), rows = c.symbols[0] * heads;
    const int64_t threads = max64(1, min64(c.nthreads, rows / Schedule::Grain));
    if (c.tid >= threads) return;
    float* tmp = static_cast<float*>(c.scratch) + c.tid * kStride;
    for (int64_t i = rows * c.tid / threads; i < rows * (c.tid + 1) / threads; ++i) {
      int64_t b = i % heads;
      (try_job<Jobs>(c, i / heads, b, tmp) || ...);
    }
  }

 private:
  template <class Job> static bool try_job(const ap_ctx& c, int64_t a, int64_t& b, float* tmp) {
    const int64_t heads = Job::heads(c);
    if (b < heads) {
      Job::row(c, a, b, tmp);
      return true;
    }
    b -= heads;
    return false;
  }
};

}  // namespace ap
