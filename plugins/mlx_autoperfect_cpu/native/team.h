// Runs one function on every thread of a team. Each thread that leads teams (a stream's thread in
// MLX) owns its workers, so that streams never wait for each other.
//
// Why not an OpenMP region: its runtime spins for milliseconds at the end of a region without giving
// the core away, and the length can only be set before the process starts. On two cores with one
// other busy process that doubles to quadruples the mean time of a decode step.
#pragma once
#include <atomic>
#include <chrono>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

#include "abi.h"

namespace autoperfect {

class Team {
 public:
  Team() = default;
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  ~Team() {
    stop_ = true;
    open_round();
    for (std::thread& worker : workers_) worker.join();
  }

  // Calls member(tid, nthreads) on the calling thread and on up to wanted - 1 workers; returns when
  // all are done. The system may allow fewer threads than wanted.
  template <typename Member>
  void run(int32_t wanted, const Member& member) {
    hire(wanted - 1);
    const auto hired = static_cast<int32_t>(workers_.size());
    nthreads_ = std::min(wanted, hired + 1);
    if (nthreads_ == 1) return member(0, 1);
    argument_ = &member;
    call_ = [](const void* argument, int32_t tid, int32_t nthreads) {
      (*static_cast<const Member*>(argument))(tid, nthreads);
    };
    busy_.store(hired, std::memory_order_relaxed);
    open_round();
    member(0, nthreads_);
    for (int32_t spins = 0; busy_.load(std::memory_order_acquire) != 0; ++spins) relax(spins);
  }

 private:
  static constexpr int32_t kSpins = 500;  // about 20 us of spinning before the core is offered to others
  static constexpr std::chrono::microseconds kAwake{100};  // idle time before a worker sleeps

  static void relax(int32_t spins) {
    if (spins < kSpins) ap_pause();
    else std::this_thread::yield();
  }

  void hire(int32_t count) {
    while (static_cast<int32_t>(workers_.size()) < count) {
      const auto tid = static_cast<int32_t>(workers_.size()) + 1;
      const int32_t seen = round_.load();
      try {
        workers_.emplace_back([this, tid, seen] { work(tid, seen); });
      } catch (const std::system_error&) {
        return;
      }
    }
  }

  void open_round() {
    round_.fetch_add(1);
    if (sleepers_.load() > 0) round_.notify_all();
  }

  void work(int32_t tid, int32_t seen) {
    for (;;) {
      wait_beyond(seen);
      seen = round_.load(std::memory_order_acquire);
      if (stop_) return;
      if (tid < nthreads_) call_(argument_, tid, nthreads_);
      busy_.fetch_sub(1, std::memory_order_acq_rel);
    }
  }

  // Returns when `round_` is no longer `seen`: spins, then yields the core, then sleeps.
  void wait_beyond(int32_t seen) {
    std::chrono::steady_clock::time_point idle_since;
    for (int32_t spins = 0; round_.load(std::memory_order_acquire) == seen; ++spins) {
      relax(spins);
      if (spins < kSpins || spins % 16 != 0) continue;
      const auto now = std::chrono::steady_clock::now();
      if (spins < kSpins + 16) idle_since = now;
      if (now - idle_since < kAwake) continue;
      sleepers_.fetch_add(1);
      round_.wait(seen);
      sleepers_.fetch_sub(1);
    }
  }

  std::vector<std::thread> workers_;
  const void* argument_ = nullptr;
  void (*call_)(const void*, int32_t, int32_t) = nullptr;
  int32_t nthreads_ = 1;
  bool stop_ = false;
  alignas(64) std::atomic<int32_t> round_{0};
  alignas(64) std::atomic<int32_t> busy_{0};
  alignas(64) std::atomic<int32_t> sleepers_{0};
};

// The team that the calling thread leads.
inline Team& own_team() {
  static thread_local Team team;
  return team;
}

}  // namespace autoperfect
