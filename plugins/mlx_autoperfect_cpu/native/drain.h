// Waits, before the process ends, for the work that is still queued.
//
// MLX's stream threads run on while the C++ runtime destroys MLX's allocator. A generation loop always
// leaves the next token's work behind, and a kernel that then allocates memory crashes the process.
#pragma once
#include <algorithm>
#include <chrono>
#include <future>
#include <memory>
#include <mutex>
#include <vector>

#include "mlx/scheduler.h"
#include "mlx/stream.h"

namespace autoperfect {

class UsedStreams {
 public:
  // Remembers a stream that runs kernels.
  void note(const mlx::core::Stream& stream) {
    static thread_local int last = -1;
    if (stream.index == last) return;
    last = stream.index;
    const std::lock_guard<std::mutex> lock(mutex_);
    if (std::find(streams_.begin(), streams_.end(), stream) == streams_.end()) streams_.push_back(stream);
  }

  // Returns when all that the streams hold now is done, or after the time limit.
  void drain(std::chrono::milliseconds limit) {
    const auto deadline = std::chrono::steady_clock::now() + limit;
    std::vector<std::future<void>> ends;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (const mlx::core::Stream& stream : streams_) {
        auto end = std::make_shared<std::promise<void>>();
        ends.push_back(end->get_future());
        try {
          mlx::core::scheduler::enqueue(stream, [end]() { end->set_value(); });
        } catch (const std::exception&) {
          ends.pop_back();  // an error that the stream kept: it was reported when the result was used
        }
      }
    }
    for (std::future<void>& end : ends) end.wait_until(deadline);
  }

 private:
  std::mutex mutex_;
  std::vector<mlx::core::Stream> streams_;
};

// Never destroyed: threads may use it until the process is gone.
inline UsedStreams& used_streams() {
  static auto* streams = new UsedStreams;
  return *streams;
}

}  // namespace autoperfect
