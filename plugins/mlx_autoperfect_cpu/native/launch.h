// One run of a plan: lays out its memory and runs its steps on a team of threads. Made while MLX
// schedules the node, run later on the stream's own thread.
#pragma once
#include <atomic>
#include <algorithm>
#include <cstring>
#include <memory>
#include <new>

#include "mlx/allocator.h"
#include "plan.h"
#include "team.h"

namespace autoperfect {

// Byte that fills fresh memory before the kernels run, or -1: shows outputs that nobody wrote.
inline std::atomic<int32_t> poison_byte{-1};
inline std::atomic<int32_t> default_threads{1};

class Launch {
 public:
  // `outputs` are allocated; `inputs` and `outputs` outlive the run (MLX holds their buffers).
  // Outputs that are `shared` have the memory of the input that they update; others that update one start as its copy.
  Launch(std::shared_ptr<const Plan> plan, std::vector<int64_t> symbols, const std::vector<mx::array>& inputs,
         const std::vector<mx::array>& outputs, const std::vector<bool>& shared)
      : plan_(std::move(plan)), symbols_(std::move(symbols)), poison_(poison_byte.load()) {
    const int32_t wanted = plan_->threads > 0 ? plan_->threads : default_threads.load();
    int32_t useful = 1;
    for (const Step& step : plan_->steps) useful = std::max(useful, step.threads > 0 ? step.threads : wanted);
    threads_ = std::min(wanted, useful);
    lay_out(inputs, outputs);
    for (const Update& update : plan_->updates) {
      const size_t at = static_cast<size_t>(update.output);
      const ap_array& from = buffers_[update.input];
      if (!shared[at]) copies_.push_back({inputs.size() + at, 0, from.data, from.strides, inputs[update.input].itemsize()});
      outputs_[at].second = 0;  // never poisoned: most of it is not written
    }
  }

  // Runs the steps; the only allocation is the arena.
  void run() {
    const mx::allocator::Data arena = mx::allocator::malloc(arena_bytes_ + kAlignment);
    const auto start = reinterpret_cast<uintptr_t>(arena.buffer().raw_ptr());
    if (start == 0) throw std::bad_alloc();
    char* base = reinterpret_cast<char*>((start + kAlignment - 1) / kAlignment * kAlignment);
    prepare(base);
    own_team().run(threads_, [this](int32_t tid, int32_t nthreads) { member(tid, nthreads); });
  }

 private:
  // A non-contiguous input and the place of its contiguous copy; or an output that starts as the copy of an input.
  struct Copy {
    size_t buffer;
    int64_t offset;
    const void* source;
    const int64_t* strides;  // of the source
    size_t itemsize;
  };

  static constexpr int64_t kExternal = -1;  // in offsets_: the data is not in the arena

  static bool must_copy(const mx::array& array, const Operand& operand) {
    if (operand.layout == Layout::kRowContiguous) return !array.flags().row_contiguous;
    return operand.layout == Layout::kUnitLastStride && array.ndim() > 0 && array.shape().back() > 1 && array.strides().back() != 1;
  }

  void lay_out(const std::vector<mx::array>& inputs, const std::vector<mx::array>& outputs) {
    const size_t count = inputs.size() + outputs.size() + plan_->temporaries.size() + plan_->views.size();
    size_t axes = 0;
    for (const mx::array& a : inputs) axes += 2 * a.ndim();
    for (const mx::array& a : outputs) axes += a.ndim();
    for (const Operand& t : plan_->temporaries) axes += t.dims.size();
    for (const View& view : plan_->views) axes += view.dims.size();
    shapes_.reserve(axes);
    strides_.reserve(axes);
    buffers_.reserve(count);
    offsets_.assign(count, kExternal);
    arena_bytes_ = aligned(static_cast<int64_t>(sizeof(ap_team)) * (plan_->steps.size() + 1));
    for (size_t i = 0; i < inputs.size(); ++i) add_input(inputs[i], plan_->inputs[i]);
    for (const mx::array& output : outputs) {
      outputs_.emplace_back(const_cast<void*>(output.data<void>()), output.nbytes());
      add_row_contiguous(output.shape(), const_cast<void*>(output.data<void>()));
    }
    for (const Operand& temporary : plan_->temporaries) {
      mx::Shape shape;
      int64_t size = 1;
      for (const Dim& dim : temporary.dims) {
        shape.push_back(static_cast<mx::ShapeElem>(dim.size(symbols_)));
        size *= shape.back();
      }
      offsets_[buffers_.size()] = reserve(size * temporary.dtype.size());
      add_row_contiguous(shape, nullptr);
    }
    for (const View& view : plan_->views) {
      mx::Shape shape;
      for (const Dim& dim : view.dims) shape.push_back(static_cast<mx::ShapeElem>(dim.size(symbols_)));
      const ap_array& base = buffers_[view.buffer];
      const auto [kept, strides] = store(shape, mx::Strides(base.strides, base.strides + base.ndim));
      buffers_.push_back({nullptr, kept, strides, base.ndim});
    }
    int64_t scratch = 0;
    for (const Step& step : plan_->steps) scratch = std::max(scratch, step.scratch_bytes(symbols_));
    scratch_offset_ = reserve(scratch);
    size_t references = 0;
    for (const Step& step : plan_->steps) references += step.in.size() + step.out.size();
    operands_.reserve(references);
  }

  void add_input(const mx::array& array, const Operand& operand) {
    void* data = const_cast<void*>(array.data<void>());
    if (!must_copy(array, operand)) {
      const auto [shape, strides] = store(array.shape(), array.strides());
      buffers_.push_back({data, shape, strides, static_cast<int64_t>(array.ndim())});
      return;
    }
    const int64_t* source_strides = store(array.shape(), array.strides()).second;
    const int64_t offset = reserve(array.nbytes());
    copies_.push_back({buffers_.size(), offset, data, source_strides, array.itemsize()});
    offsets_[buffers_.size()] = offset;
    add_row_contiguous(array.shape(), nullptr);
  }

  void add_row_contiguous(const mx::Shape& shape, void* data) {
    mx::Strides strides(shape.size(), 1);
    for (size_t axis = shape.size(); axis-- > 1;) strides[axis - 1] = strides[axis] * shape[axis];
    const auto [kept_shape, kept_strides] = store(shape, strides);
    buffers_.push_back({data, kept_shape, kept_strides, static_cast<int64_t>(shape.size())});
  }

  // Keeps a shape and strides for as long as the launch. The space was reserved: pointers stay valid.
  std::pair<const int32_t*, const int64_t*> store(const mx::Shape& shape, const mx::Strides& strides) {
    const size_t at = shapes_.size();
    shapes_.insert(shapes_.end(), shape.begin(), shape.end());
    strides_.insert(strides_.end(), strides.begin(), strides.end());
    return {shapes_.data() + at, strides_.data() + at};
  }

  int64_t reserve(int64_t bytes) {
    const int64_t offset = arena_bytes_;
    arena_bytes_ += aligned(bytes);
    return offset;
  }

  void prepare(char* base) {
    teams_ = reinterpret_cast<ap_team*>(base);
    if (poison_ >= 0) {
      std::memset(base, poison_, arena_bytes_);
      for (const auto& [data, bytes] : outputs_) std::memset(data, poison_, bytes);
    }
    for (size_t i = 0; i <= plan_->steps.size(); ++i) new (teams_ + i) ap_team;
    for (size_t i = 0; i < buffers_.size(); ++i)
      if (offsets_[i] != kExternal) buffers_[i].data = base + offsets_[i];
    const size_t first_view = buffers_.size() - plan_->views.size();
    for (size_t i = 0; i < plan_->views.size(); ++i) buffers_[first_view + i].data = buffers_[plan_->views[i].buffer].data;
    scratch_ = base + scratch_offset_;
    operands_.clear();
    for (const Step& step : plan_->steps) {
      for (int32_t ref : step.in) operands_.push_back(buffers_[ref]);
      for (int32_t ref : step.out) operands_.push_back(buffers_[ref]);
    }
  }

  // What every thread of the team does: its share of the copies, then all steps in order.
  void member(int32_t tid, int32_t nthreads) const {
    ap_team* between = teams_ + plan_->steps.size();
    const ap_ctx whole{nullptr, nullptr, symbols_.data(), nullptr, between, tid, nthreads};
    for (const Copy& copy : copies_) make_contiguous(copy, tid, nthreads);
    if (!copies_.empty()) ap_barrier(&whole);
    const ap_array* operands = operands_.data();
    for (size_t i = 0; i < plan_->steps.size(); ++i) {
      const Step& step = plan_->steps[i];
      const int32_t members = step.threads > 0 ? std::min(step.threads, nthreads) : nthreads;
      if (tid < members) {
        const ap_ctx ctx{operands, operands + step.in.size(), symbols_.data(), scratch_, teams_ + i, tid, members};
        step.kernel(&ctx);
      }
      operands += step.in.size() + step.out.size();
      if (i + 1 < plan_->steps.size()) ap_barrier(&whole);
    }
  }

  // Copies this thread's share of the rows (all axes but the last) of a strided input.
  void make_contiguous(const Copy& copy, int32_t tid, int32_t nthreads) const {
    const ap_array& to = buffers_[copy.buffer];
    const int64_t width = to.ndim == 0 ? 1 : to.shape[to.ndim - 1];
    const int64_t step = to.ndim == 0 ? 1 : copy.strides[to.ndim - 1];
    int64_t rows = 1;
    for (int64_t axis = 0; axis + 1 < to.ndim; ++axis) rows *= to.shape[axis];
    const auto item = static_cast<int64_t>(copy.itemsize);
    for (int64_t row = rows * tid / nthreads; row < rows * (tid + 1) / nthreads; ++row) {
      int64_t rest = row;
      int64_t from = 0;
      for (int64_t axis = to.ndim - 2; axis >= 0; --axis) {
        from += rest % to.shape[axis] * copy.strides[axis];
        rest /= to.shape[axis];
      }
      const char* source = static_cast<const char*>(copy.source) + from * item;
      char* target = static_cast<char*>(to.data) + row * width * item;
      if (step == 1) {
        std::memcpy(target, source, width * item);
        continue;
      }
      for (int64_t i = 0; i < width; ++i) std::memcpy(target + i * item, source + i * step * item, item);
    }
  }

  std::shared_ptr<const Plan> plan_;
  std::vector<int64_t> symbols_;
  std::vector<int32_t> shapes_;
  std::vector<int64_t> strides_;
  std::vector<ap_array> buffers_;   // inputs, outputs, temporaries
  std::vector<int64_t> offsets_;    // in the arena, of each buffer
  std::vector<Copy> copies_;
  std::vector<std::pair<void*, size_t>> outputs_;
  std::vector<ap_array> operands_;  // of all steps, in order: inputs then outputs of each
  int64_t arena_bytes_ = 0;
  int64_t scratch_offset_ = 0;
  void* scratch_ = nullptr;
  ap_team* teams_ = nullptr;        // one for each step, one for what lies between them
  int32_t threads_ = 1;
  int32_t poison_;
};

}  // namespace autoperfect
