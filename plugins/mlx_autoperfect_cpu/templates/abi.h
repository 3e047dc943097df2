// The binary interface between MLX's graph (native/extension.cpp) and a compiled CPU kernel.
//
// A kernel is one function that every thread of a team calls with its own `tid` (SPMD). It may
// synchronise the team with ap_barrier and share work through ap_next_chunk; it must not allocate,
// throw, or keep state between calls.
#pragma once
#include <atomic>
#include <cstdint>
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#include <sched.h>

// One array operand. Strides are in elements. `shape` and `strides` have `ndim` entries.
struct ap_array {
  void* data;
  const int32_t* shape;
  const int64_t* strides;
  int64_t ndim;
};

// State shared by the threads that run one kernel. A sense-reversing barrier: `arrived` counts up
// to `nthreads`, the last one in opens the next `phase`.
struct ap_team {
  alignas(64) std::atomic<int32_t> arrived{0};
  alignas(64) std::atomic<int32_t> phase{0};
  alignas(64) std::atomic<int64_t> chunk{0};
};

struct ap_ctx {
  const ap_array* in;      // operands in the order of the kernel's ABI
  const ap_array* out;
  const int64_t* symbols;  // values of the symbolic sizes and scalars (rows, cache offset, ...)
  void* scratch;           // temporaries shared by the team, 64-byte aligned, size fixed by the ABI
  ap_team* team;           // `chunk` is 0 when the kernel starts
  int32_t tid;
  int32_t nthreads;
};

typedef void (*ap_kernel)(const ap_ctx*);

// Tells the core that this is a spin loop.
static inline void ap_pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Waits until every thread of the team has arrived. Yields the core after a while: a machine with
// more runnable threads than cores must not spend its time slices spinning.
static inline void ap_barrier(const ap_ctx* c) {
  if (c->nthreads == 1) return;
  ap_team* t = c->team;
  const int32_t phase = t->phase.load(std::memory_order_relaxed);
  if (t->arrived.fetch_add(1, std::memory_order_acq_rel) == c->nthreads - 1) {
    t->arrived.store(0, std::memory_order_relaxed);
    t->phase.store(phase + 1, std::memory_order_release);
    return;
  }
  for (int spins = 0; t->phase.load(std::memory_order_acquire) == phase; ++spins) {
    if (spins < 2000) ap_pause();
    else sched_yield();
  }
}

// The next piece of dynamically shared work: 0, 1, 2, ... over the whole team.
static inline int64_t ap_next_chunk(const ap_ctx* c) {
  return c->team->chunk.fetch_add(1, std::memory_order_relaxed);
}
