// The immutable description of one node: its operands, its kernel steps and its memory. Plain data,
// made once from Python and shared by every node that runs it; no Python object lives in it.
#pragma once
#include <cstdint>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "abi.h"
#include "mlx/array.h"

namespace autoperfect {

namespace mx = mlx::core;

constexpr int32_t kConstant = -1;  // the size is `factor`
constexpr int32_t kAny = -2;       // any size (inputs only)
constexpr int32_t kAnyRank = -1;   // any number of dimensions (inputs only)
constexpr int64_t kAlignment = 64;

// One axis: `factor`, times the value of a symbol when `symbol` is not negative.
struct Dim {
  int64_t factor;
  int32_t symbol;

  int64_t size(const std::vector<int64_t>& symbols) const {
    return symbol < 0 ? factor : factor * symbols[symbol];
  }
};

// What a kernel takes an input's strides to be; any other input is copied first.
enum class Layout { kRowContiguous, kUnitLastStride, kAny };

struct Operand {
  mx::Dtype dtype;
  int32_t rank;
  std::vector<Dim> dims;
  Layout layout;
  std::string name;
};

// Memory of another buffer under a smaller shape, with the strides that it has there: the filled part of a cache.
struct View {
  int32_t buffer;
  std::vector<Dim> dims;
};

// Output `output` is input `input` with some elements written: in its memory where nobody else holds it, else in a copy.
struct Update {
  int32_t output;
  int32_t input;
};

// One kernel call. `in` and `out` number the plan's buffers: inputs, then outputs, then temporaries, then views.
struct Step {
  ap_kernel kernel;
  std::vector<int32_t> in;
  std::vector<int32_t> out;
  int64_t scratch;                                          // bytes, plus bytes per unit of a symbol:
  std::vector<std::pair<int32_t, int64_t>> scratch_symbols;
  int32_t threads;  // at most this many threads; 0 for all

  int64_t scratch_bytes(const std::vector<int64_t>& symbols) const {
    int64_t bytes = scratch;
    for (const auto& [symbol, each] : scratch_symbols) bytes += each * symbols[symbol];
    return bytes;
  }
};

struct Plan {
  std::string name;
  std::vector<Step> steps;
  std::vector<Operand> inputs;
  std::vector<Operand> outputs;
  std::vector<Operand> temporaries;
  std::vector<View> views;
  std::vector<Update> updates;
  std::vector<mx::Dtype> output_dtypes;
  int32_t threads;          // 0 for the module's default
  std::vector<bool> sizes;  // of each symbol that the plan names, whether it is a size; kernels may read more symbols

  // Notes that the plan uses a symbol as a size.
  void use_size(int32_t symbol) {
    if (static_cast<size_t>(symbol) >= sizes.size()) sizes.resize(symbol + 1);
    sizes[symbol] = true;
  }

  // Checks the references between the parts. Throws std::invalid_argument.
  void validate() const;

  // Gives every symbol that an input's size fixes the value that the input has, then checks all
  // inputs. Throws std::invalid_argument with the number and name of the first that does not fit.
  void bind(const std::vector<mx::array>& arrays, std::vector<int64_t>& symbols) const;

  // Checks number, dtype, rank and sizes of the inputs against given symbols; throws like `bind`.
  void check(const std::vector<mx::array>& arrays, const std::vector<int64_t>& symbols) const;

  std::vector<mx::Shape> output_shapes(const std::vector<int64_t>& symbols) const {
    std::vector<mx::Shape> shapes(outputs.size());
    for (size_t i = 0; i < outputs.size(); ++i)
      for (const Dim& dim : outputs[i].dims)
        shapes[i].push_back(static_cast<mx::ShapeElem>(dim.size(symbols)));
    return shapes;
  }
};

// How many arrays share the description of `array`: 1 when nobody but the given one knows it. MLX asks the same of its
// own arrays (is_donatable) but offers no count; an array is nothing but a shared pointer to its description.
inline long owners(const mx::array& array) {
  static_assert(sizeof(mx::array) == sizeof(std::shared_ptr<void>));
  return reinterpret_cast<const std::shared_ptr<void>&>(array).use_count();
}

inline int64_t aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

namespace detail {

[[noreturn]] inline void fail(const Plan& plan, const std::string& what) {
  throw std::invalid_argument(plan.name + ": " + what);
}

inline std::string operand_label(const Plan& plan, size_t i) {
  const std::string& name = plan.inputs[i].name;
  return "input " + std::to_string(i) + (name.empty() ? "" : " '" + name + "'");
}

inline std::string dtype_text(const mx::Dtype& dtype) {
  std::ostringstream text;
  text << dtype;
  return text.str();
}

template <typename Size>
std::string shape_text(const mx::Dtype& dtype, size_t rank, Size size) {
  std::string text = dtype_text(dtype) + "[";
  for (size_t axis = 0; axis < rank; ++axis) text += (axis ? "," : "") + size(axis);
  return text + "]";
}

inline std::string expected_text(const Operand& operand, const std::vector<int64_t>& symbols) {
  if (operand.rank == kAnyRank) return dtype_text(operand.dtype) + "[...]";
  return shape_text(operand.dtype, operand.dims.size(), [&](size_t axis) {
    const Dim& dim = operand.dims[axis];
    return dim.symbol == kAny ? std::string("*") : std::to_string(dim.size(symbols));
  });
}

inline bool fits(const Operand& operand, const mx::array& array, const std::vector<int64_t>& symbols) {
  if (array.dtype() != operand.dtype) return false;
  if (operand.rank == kAnyRank) return true;
  const mx::Shape& shape = array.shape();
  if (shape.size() != operand.dims.size()) return false;
  for (size_t axis = 0; axis < shape.size(); ++axis) {
    const Dim& dim = operand.dims[axis];
    if (dim.symbol != kAny && shape[axis] != dim.size(symbols)) return false;
  }
  return true;
}

}  // namespace detail

inline void Plan::check(const std::vector<mx::array>& arrays, const std::vector<int64_t>& symbols) const {
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (detail::fits(inputs[i], arrays[i], symbols)) continue;
    const mx::array& array = arrays[i];
    const std::string got = detail::shape_text(
        array.dtype(), array.ndim(), [&](size_t axis) { return std::to_string(array.shape()[axis]); });
    detail::fail(
        *this,
        detail::operand_label(*this, i) + ": expected " + detail::expected_text(inputs[i], symbols) + ", got " + got);
  }
}

inline void Plan::bind(const std::vector<mx::array>& arrays, std::vector<int64_t>& symbols) const {
  for (size_t i = 0; i < inputs.size(); ++i) {
    const std::vector<Dim>& dims = inputs[i].dims;
    const mx::Shape& shape = arrays[i].shape();
    for (size_t axis = 0; axis < dims.size() && axis < shape.size(); ++axis)
      if (dims[axis].symbol >= 0 && dims[axis].factor > 0)
        symbols[dims[axis].symbol] = shape[axis] / dims[axis].factor;
  }
  check(arrays, symbols);
}

inline void Plan::validate() const {
  const auto buffers = static_cast<int32_t>(inputs.size() + outputs.size() + temporaries.size() + views.size());
  const auto num_inputs = static_cast<int32_t>(inputs.size());
  const auto results = static_cast<int32_t>(buffers - views.size());
  for (const View& view : views)
    if (view.buffer < 0 || view.buffer >= results) detail::fail(*this, "a view of a buffer that does not exist");
  for (const Update& update : updates)
    if (update.input >= 0 && update.input < num_inputs && inputs[update.input].layout != Layout::kAny)
      detail::fail(*this, "an updated input may have any strides: declare it so");
    else if (update.output < 0 || update.output >= static_cast<int32_t>(outputs.size()) || update.input < 0 ||
        update.input >= num_inputs)
      detail::fail(*this, "an update of an output or input that does not exist");
  for (size_t i = 0; i < steps.size(); ++i) {
    const std::string label = "step " + std::to_string(i);
    if (steps[i].kernel == nullptr) detail::fail(*this, label + ": the function's address is 0");
    for (int32_t ref : steps[i].in)
      if (ref < 0 || ref >= buffers) detail::fail(*this, label + ": no buffer has number " + std::to_string(ref));
    for (int32_t ref : steps[i].out)
      if (ref < num_inputs || ref >= buffers)
        detail::fail(*this, label + ": buffer " + std::to_string(ref) + " is no output or temporary");
  }
  for (const auto* operands : {&outputs, &temporaries})
    for (const Operand& operand : *operands)
      for (const Dim& dim : operand.dims)
        if (dim.symbol == kAny || dim.factor < 0) detail::fail(*this, "only an input may have an axis of any size");
  for (const Operand& operand : inputs)
    if (operand.rank != kAnyRank && operand.rank != static_cast<int32_t>(operand.dims.size()))
      detail::fail(*this, "input '" + operand.name + "': its rank is not the number of its dims");
}

}  // namespace autoperfect
