// The Python module: makes plans and calls them.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include "append.h"
#include "mlx/utils.h"
#include "sequence.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace autoperfect {
namespace {

using DimTuple = std::pair<int64_t, int32_t>;

std::vector<Dim> to_dims(const std::vector<DimTuple>& pairs, Plan& plan) {
  std::vector<Dim> dims;
  for (const auto& [factor, symbol] : pairs) {
    if (symbol < kAny) throw std::invalid_argument("a symbol index is 0 or more, -1 (none) or -2 (any size)");
    dims.push_back({factor, symbol});
    if (symbol >= 0) plan.use_size(symbol);
  }
  return dims;
}

// True: row-contiguous. False: the last axis has stride 1. None: any strides.
Layout to_layout(nb::handle contiguous) {
  if (contiguous.is_none()) return Layout::kAny;
  return nb::cast<bool>(contiguous) ? Layout::kRowContiguous : Layout::kUnitLastStride;
}

// (dtype, rank, dims, contiguous[, name])
Operand to_input(const nb::tuple& item, Plan& plan) {
  if (nb::len(item) != 4 && nb::len(item) != 5)
    throw std::invalid_argument("an input is (dtype, rank, dims, contiguous[, name])");
  auto dims = to_dims(nb::cast<std::vector<DimTuple>>(item[2]), plan);
  auto name = nb::len(item) == 5 ? nb::cast<std::string>(item[4]) : std::string();
  return {nb::cast<mx::Dtype>(item[0]), nb::cast<int32_t>(item[1]), std::move(dims), to_layout(item[3]),
          std::move(name)};
}

// (dtype, dims)
Operand to_result(const nb::tuple& item, Plan& plan) {
  if (nb::len(item) != 2) throw std::invalid_argument("an output or temporary is (dtype, dims)");
  auto dims = to_dims(nb::cast<std::vector<DimTuple>>(item[1]), plan);
  const auto rank = static_cast<int32_t>(dims.size());
  return {nb::cast<mx::Dtype>(item[0]), rank, std::move(dims), Layout::kRowContiguous, ""};
}

// (function address, inputs, outputs, scratch bytes, [(symbol, bytes)][, most threads])
Step to_step(const nb::tuple& item, Plan& plan) {
  if (nb::len(item) != 5 && nb::len(item) != 6)
    throw std::invalid_argument("a step is (address, inputs, outputs, scratch, scratch per symbol[, threads])");
  auto per_symbol = nb::cast<std::vector<std::pair<int32_t, int64_t>>>(item[4]);
  for (const auto& [symbol, bytes] : per_symbol) {
    if (symbol < 0) throw std::invalid_argument("scratch per symbol: a symbol index is 0 or more");
    plan.use_size(symbol);
  }
  return {reinterpret_cast<ap_kernel>(nb::cast<uintptr_t>(item[0])),
          nb::cast<std::vector<int32_t>>(item[1]),
          nb::cast<std::vector<int32_t>>(item[2]),
          nb::cast<int64_t>(item[3]),
          std::move(per_symbol),
          nb::len(item) == 6 ? nb::cast<int32_t>(item[5]) : 0};
}

// The plan as Python holds it. `keep` are the objects that must live as long as it does.
class PyPlan {
 public:
  PyPlan(const std::vector<nb::tuple>& steps, const std::vector<nb::tuple>& inputs,
         const std::vector<nb::tuple>& outputs, const std::vector<nb::tuple>& temporaries, int32_t threads,
         std::string name, nb::object keep, const std::vector<nb::tuple>& views,
         const std::vector<std::pair<int32_t, int32_t>>& updates)
      : keep_(std::move(keep)) {
    auto plan = std::make_shared<Plan>();
    plan->name = std::move(name);
    plan->threads = std::max(threads, 0);
    for (const auto& item : inputs) plan->inputs.push_back(to_input(item, *plan));
    for (const auto& item : outputs) plan->outputs.push_back(to_result(item, *plan));
    for (const auto& item : temporaries) plan->temporaries.push_back(to_result(item, *plan));
    for (const auto& item : views) {
      auto dims = to_dims(nb::cast<std::vector<DimTuple>>(item[1]), *plan);
      plan->views.push_back({nb::cast<int32_t>(item[0]), std::move(dims)});
    }
    for (const auto& [output, input] : updates) plan->updates.push_back({output, input});
    for (const auto& item : steps) plan->steps.push_back(to_step(item, *plan));
    for (const Operand& output : plan->outputs) plan->output_dtypes.push_back(output.dtype);
    plan->validate();
    plan_ = std::move(plan);
  }

  nb::list call(nb::handle inputs, nb::handle symbols, nb::handle stream) const {
    std::vector<mx::array> arrays;
    arrays.reserve(plan_->inputs.size());
    const bool in_place = append_arrays(inputs, plan_->inputs.size(), arrays);
    return run(std::move(arrays), in_place, symbols, stream);
  }

  // The node's outputs for all of its inputs.
  nb::list run(std::vector<mx::array> arrays, bool in_place, nb::handle symbols, nb::handle stream) const {
    std::vector<int64_t> values = to_symbols(symbols);
    plan_->check(arrays, values);
    auto shapes = plan_->output_shapes(values);
    auto node = std::make_shared<Sequence>(to_stream(stream), plan_, std::move(values), in_place);
    auto made = mx::array::make_arrays(std::move(shapes), plan_->output_dtypes, node, arrays);
    nb::list result;
    for (mx::array& array : made) result.append(nb::cast(std::move(array)));
    return result;
  }

  const Plan& plan() const { return *plan_; }

  // Appends `wanted` arrays of a list or tuple to `arrays`. Returns whether the inputs that the plan updates are known
  // to nobody but the sequence and one owner: then they may be updated in place.
  bool append_arrays(nb::handle inputs, size_t wanted, std::vector<mx::array>& arrays) const {
    nb::object fast = nb::steal(PySequence_Fast(inputs.ptr(), "inputs must be a list or tuple of arrays"));
    if (!fast.is_valid()) nb::raise_python_error();
    const auto count = static_cast<size_t>(PySequence_Fast_GET_SIZE(fast.ptr()));
    if (count != wanted)
      detail::fail(*plan_, "expected " + std::to_string(wanted) + " inputs, got " + std::to_string(count));
    PyObject** items = PySequence_Fast_ITEMS(fast.ptr());
    bool alone = true;
    for (const Update& update : plan_->updates)
      alone = alone && static_cast<size_t>(update.input) < count && Py_REFCNT(items[update.input]) <= 2 &&
              owners(to_array(nb::handle(items[update.input]), update.input)) == 1;
    for (size_t i = 0; i < count; ++i) {
      arrays.push_back(to_array(nb::handle(items[i]), arrays.size()));
      alone = alone && !arrays.back().is_tracer();  // a traced graph is run again, on arrays that are not known here
    }
    return alone;
  }

  // The array that a Python object is; `i` is its place among the inputs, for the error.
  const mx::array& to_array(nb::handle item, size_t i) const {
    mx::array* array = nullptr;
    if (!nb::try_cast<mx::array*>(item, array, false) || array == nullptr)
      detail::fail(*plan_, detail::operand_label(*plan_, i) + ": expected an mlx.core.array, got " +
                               nb::cast<std::string>(nb::str(nb::type_name(item.type()))));
    return *array;
  }

 private:

  std::vector<int64_t> to_symbols(nb::handle symbols) const {
    auto values = nb::cast<std::vector<int64_t>>(symbols);
    const std::vector<bool>& sizes = plan_->sizes;
    if (values.size() < sizes.size())
      detail::fail(*plan_, "expected at least " + std::to_string(sizes.size()) + " symbols, got " +
                               std::to_string(values.size()));
    for (size_t i = 0; i < sizes.size(); ++i)
      if (sizes[i] && values[i] < 0)
        detail::fail(*plan_, "symbol " + std::to_string(i) + " is a size and cannot be negative");
    return values;
  }

  mx::Stream to_stream(nb::handle stream) const {
    if (stream.is_none()) return mx::default_stream(mx::Device::cpu);
    const mx::Stream chosen = mx::to_stream(nb::cast<mx::StreamOrDevice>(stream), mx::Device::cpu);
    if (chosen.device != mx::Device::cpu) detail::fail(*plan_, "this kernel is for the CPU, the stream is a GPU's");
    return chosen;
  }

  std::shared_ptr<const Plan> plan_;
  nb::object keep_;
};

// A plan whose last inputs are parameters: entries of dicts (or lists), looked up at every call, so that a replaced
// parameter is seen. Guards are entries that must still hold the same object, such as the modules on the way.
class PyBound {
 public:
  PyBound(nb::object plan, const std::vector<nb::tuple>& params, const std::vector<nb::tuple>& guards)
      : keep_(std::move(plan)), plan_(nb::cast<const PyPlan&>(keep_)) {
    for (const nb::tuple& item : params) params_.push_back({item[0], item[1], find(item[0], item[1])});
    for (const nb::tuple& item : guards) guards_.push_back({item[0], item[1], item[2]});
    if (params_.size() > plan_.plan().inputs.size())
      detail::fail(plan_.plan(), "more parameters than inputs");
    own_ = plan_.plan().inputs.size() - params_.size();
  }

  // Python's cycle collector: the modules of a model hold, through their patched calls, what is bound to them.
  int traverse(visitproc visit, void* arg) const {
    Py_VISIT(keep_.ptr());
    for (const std::vector<Entry>* entries : {&params_, &guards_})
      for (const Entry& entry : *entries) {
        Py_VISIT(entry.owner.ptr());
        Py_VISIT(entry.key.ptr());
        Py_VISIT(entry.value.ptr());
      }
    return 0;
  }

  void clear() {
    params_.clear();
    guards_.clear();
  }

  nb::list call(nb::handle inputs, nb::handle symbols, nb::handle stream) {
    for (const Entry& guard : guards_)
      if (find(guard.owner, guard.key).ptr() != guard.value.ptr())
        detail::fail(plan_.plan(), "a module of the model was replaced: " + nb::cast<std::string>(nb::str(guard.key)));
    std::vector<mx::array> arrays;
    arrays.reserve(own_ + params_.size());
    const bool in_place = plan_.append_arrays(inputs, own_, arrays);
    for (Entry& entry : params_) {
      nb::handle now = find(entry.owner, entry.key);
      if (now.ptr() != entry.value.ptr()) entry.value = nb::borrow(now);
      arrays.push_back(plan_.to_array(entry.value, arrays.size()));
    }
    return plan_.run(std::move(arrays), in_place, symbols, stream);
  }

 private:
  struct Entry {
    nb::object owner, key, value;
  };

  // owner[key] of a dict or list, borrowed; throws if there is no such entry.
  nb::object find(const nb::object& owner, const nb::object& key) const {
    PyObject* found = nullptr;
    if (PyDict_Check(owner.ptr())) found = PyDict_GetItemWithError(owner.ptr(), key.ptr());
    else if (PyList_Check(owner.ptr())) found = PyList_GetItem(owner.ptr(), PyLong_AsSsize_t(key.ptr()));
    if (found == nullptr) {
      PyErr_Clear();
      detail::fail(plan_.plan(), "the model no longer has " + nb::cast<std::string>(nb::str(key)));
    }
    return nb::borrow(found);
  }

  nb::object keep_;
  const PyPlan& plan_;
  std::vector<Entry> params_, guards_;
  size_t own_ = 0;
};

int traverse_bound(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  return nb::inst_ready(self) ? nb::inst_ptr<PyBound>(self)->traverse(visit, arg) : 0;
}

int clear_bound(PyObject* self) {
  nb::inst_ptr<PyBound>(self)->clear();
  return 0;
}

PyType_Slot bound_slots[] = {{Py_tp_traverse, reinterpret_cast<void*>(traverse_bound)},
                             {Py_tp_clear, reinterpret_cast<void*>(clear_bound)},
                             {0, nullptr}};

void set_poison(std::optional<int32_t> pattern) {
  if (pattern && (*pattern < 0 || *pattern > 255)) throw std::invalid_argument("the pattern is a byte, 0 to 255");
  poison_byte = pattern.value_or(-1);
}

void set_threads(int32_t threads) {
  if (threads < 1) throw std::invalid_argument("the number of threads is 1 or more");
  default_threads = threads;
}

}  // namespace
}  // namespace autoperfect

NB_MODULE(AP_MODULE_NAME, m) {
  using namespace autoperfect;
  nb::class_<PyPlan>(m, "Plan")
      .def(nb::init<const std::vector<nb::tuple>&, const std::vector<nb::tuple>&, const std::vector<nb::tuple>&,
                    const std::vector<nb::tuple>&, int32_t, std::string, nb::object, const std::vector<nb::tuple>&,
                    const std::vector<std::pair<int32_t, int32_t>>&>(),
           "steps"_a, "inputs"_a, "outputs"_a, "temporaries"_a = std::vector<nb::tuple>(), "threads"_a = 0,
           "name"_a = "Sequence", "keep"_a = nb::none(), "views"_a = std::vector<nb::tuple>(),
           "updates"_a = std::vector<std::pair<int32_t, int32_t>>())
      .def("__call__", &PyPlan::call, "inputs"_a, "symbols"_a = nb::tuple(), "stream"_a = nb::none())
      .def_prop_ro("name", [](const PyPlan& self) { return self.plan().name; })
      .def_prop_ro("num_inputs", [](const PyPlan& self) { return self.plan().inputs.size(); })
      .def_prop_ro("num_outputs", [](const PyPlan& self) { return self.plan().outputs.size(); })
      .def("__repr__", [](const PyPlan& self) {
        const Plan& plan = self.plan();
        return "Plan(" + plan.name + ", " + std::to_string(plan.steps.size()) + " steps, " +
               std::to_string(plan.inputs.size()) + " inputs, " + std::to_string(plan.outputs.size()) + " outputs)";
      });
  nb::class_<PyBound>(m, "Bound", nb::type_slots(bound_slots))
      .def(nb::init<nb::object, const std::vector<nb::tuple>&, const std::vector<nb::tuple>&>(), "plan"_a, "params"_a,
           "guards"_a)
      .def("__call__", &PyBound::call, "inputs"_a, "symbols"_a = nb::tuple(), "stream"_a = nb::none());
  m.def("append_address", [](int32_t itemsize) { return reinterpret_cast<uintptr_t>(append_kernel(itemsize)); },
        "itemsize"_a);
  m.def("set_poison", &set_poison, "pattern"_a.none());
  m.def("set_threads", &set_threads, "threads"_a);
  m.def("threads", [] { return default_threads.load(); });
  m.def("drain", [](double seconds) {
    const nb::gil_scoped_release released;
    used_streams().drain(std::chrono::milliseconds(static_cast<int64_t>(seconds * 1000)));
  }, "seconds"_a);
  m.def("shares_mlx", [] { return nb::type<mx::array>().is_valid(); });
}
