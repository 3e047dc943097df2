// The MLX primitive: a list of kernel steps as one lazy node of the graph.
#pragma once
#include "drain.h"
#include "launch.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/primitives.h"

namespace autoperfect {

class Sequence : public mx::Primitive {
 public:
  // `in_place`: the inputs that the plan updates belong to this node alone.
  Sequence(mx::Stream stream, std::shared_ptr<const Plan> plan, std::vector<int64_t> symbols, bool in_place)
      : Primitive(stream), plan_(std::move(plan)), symbols_(std::move(symbols)), in_place_(in_place) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    // Under a shapeless mx.compile the inputs may differ from those that the node was made with.
    std::vector<int64_t> symbols = symbols_;
    plan_->bind(inputs, symbols);
    std::vector<bool> shared(outputs.size());
    for (const Update& update : plan_->updates) {
      const mx::array& input = inputs[update.input];
      if (!in_place_ || !input.flags().row_contiguous) continue;
      outputs[update.output].copy_shared_buffer(input);
      shared[update.output] = true;
    }
    size_t bytes = 0;
    for (size_t i = 0; i < outputs.size(); ++i) {
      if (!shared[i]) outputs[i].set_data(mx::allocator::malloc(outputs[i].nbytes()));
      bytes += outputs[i].nbytes();
    }
    if (bytes == 0) return;
    used_streams().note(stream());
    auto& encoder = mx::cpu::get_command_encoder(stream());
    for (const mx::array& input : inputs) encoder.set_input_array(input);
    for (mx::array& output : outputs) encoder.set_output_array(output);
    auto launch = std::make_shared<Launch>(plan_, std::move(symbols), inputs, outputs, shared);
    encoder.dispatch([launch = std::move(launch)]() { launch->run(); });
  }

  void eval_gpu(const std::vector<mx::array>&, std::vector<mx::array>&) override {
    throw std::runtime_error(plan_->name + ": this kernel is for the CPU; run it on a CPU stream");
  }

  std::vector<mx::array> jvp(const std::vector<mx::array>&, const std::vector<mx::array>&,
                             const std::vector<int>&) override {
    no_gradient();
  }

  std::vector<mx::array> vjp(const std::vector<mx::array>&, const std::vector<mx::array>&, const std::vector<int>&,
                             const std::vector<mx::array>&) override {
    no_gradient();
  }

  std::pair<std::vector<mx::array>, std::vector<int>> vmap(const std::vector<mx::array>&,
                                                           const std::vector<int>&) override {
    throw std::invalid_argument(plan_->name + ": a compiled kernel cannot be used in mx.vmap; add a batch axis to it");
  }

  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& inputs) override {
    std::vector<int64_t> symbols = symbols_;
    plan_->bind(inputs, symbols);
    return plan_->output_shapes(symbols);
  }

  const char* name() const override { return plan_->name.c_str(); }

  bool is_equivalent(const mx::Primitive& other) const override {
    const auto& that = static_cast<const Sequence&>(other);
    return plan_ == that.plan_ && symbols_ == that.symbols_ && plan_->updates.empty();
  }

 private:
  [[noreturn]] void no_gradient() const {
    throw std::invalid_argument(plan_->name + ": a compiled kernel has no gradient; use MLX's own operations to train");
  }

  std::shared_ptr<const Plan> plan_;
  std::vector<int64_t> symbols_;
  bool in_place_;
};

}  // namespace autoperfect
