// The linear operations of KernelExecutor: what a layer, or a group of one input, is made of.
#include "engine/kernel_executor.h"

namespace nibble::engine {

using kernels::Context;
using spec::Module;
using spec::StepPhase;

kernels::LinearArgs KernelExecutor::LinearOf(Tensor u, int32_t layer, Module module,
                                             kernels::LoraArgs& lora) const {
  const BaseView::Layer& of = base_.layers[static_cast<size_t>(layer)];
  const int m = static_cast<int>(module);
  kernels::LinearArgs args{.m = shape_.rows, .w = of.linear[m], .bias = of.bias[m]};
  if (plan_.persistent.decoded >= 0) {
    args.w.decoded = persistent_ + plan_.persistent.decoded +
                     spec::DecodedOffset(model_, layer, module, kernels::DTypeBytes(table_.act));
  }
  const spec::AdapterMatrix* matrix =
      adapter_of_[static_cast<size_t>(layer * spec::kModuleCount + m)];
  if (matrix == nullptr) return args;
  const int64_t act = kernels::DTypeBytes(table_.act);
  const int64_t real = kernels::DTypeBytes(table_.real);
  const std::byte* compute = persistent_ + plan_.persistent.compute;
  std::byte* gradient = persistent_ + plan_.persistent.gradient;
  lora = {.r = spec_.lora_r,
          .scale = static_cast<float>(spec_.LoraScale()),
          .a = compute + matrix->a * act,
          .b = compute + matrix->b * act,
          .u = u,
          .da = gradient + matrix->a * real,
          .db = gradient + matrix->b * real};
  if (training_) {
    lora.dropout = {
        .seed = spec_.seed,
        .stream = (plan_.pads ? 0 : dropout_stream_) |
                  (static_cast<uint64_t>(layer) << 3 | static_cast<uint64_t>(spec::NumberOf(module))),
        .p = static_cast<float>(spec_.lora_dropout),
        .late_stream = reinterpret_cast<const uint64_t*>(Late(0))};
  }
  args.lora = &lora;
  return args;
}

Context* KernelExecutor::NextLinear() {
  if (context_.ahead != nullptr) {
    const spec::LinearUse& use = plan_.next_weights[op_];
    kernels::DecodeAhead& ahead = *context_.ahead;
    ahead.next_count = use.count;
    ahead.next_backward = use.backward;
    for (int i = 0; i < use.count; ++i) {
      ahead.next[i] =
          base_.layers[static_cast<size_t>(use.layer)].linear[static_cast<int>(use.first) + i];
    }
  }
  return NextOp(StepPhase::kLinear);
}

void KernelExecutor::BeginDecodeAhead() {
  context_.ahead = plan_.persistent.tiles >= 0 ? backend_.ahead() : nullptr;
  if (context_.ahead == nullptr) return;
  kernels::DecodeAhead& ahead = *context_.ahead;
  ahead.tile[0] = persistent_ + plan_.persistent.tiles;
  ahead.tile[1] = persistent_ + plan_.persistent.tiles + plan_.persistent.tile_bytes;
  ahead.tile_bytes = plan_.persistent.tile_bytes;
  ahead.pending = {};  // the last product of a micro-batch begins nothing
}

void KernelExecutor::Linear(Tensor y, Tensor x, Tensor u, int32_t layer, Module module) {
  kernels::LoraArgs lora;
  const kernels::LinearArgs args = LinearOf(u, layer, module, lora);
  table_.linear_forward(NextLinear(), y, x, args);
}

void KernelExecutor::LinearBackward(Tensor dx, bool accumulate, Tensor dy, Tensor x, Tensor u,
                                    int32_t layer, Module module) {
  kernels::LoraArgs lora;
  const kernels::LinearArgs args = LinearOf(u, layer, module, lora);
  table_.linear_backward(NextLinear(), dx, accumulate, dy, x, args);
}

kernels::LinearGroup KernelExecutor::GroupOf(std::initializer_list<Tensor> y, const Tensor* u,
                                             int32_t layer, Module first,
                                             kernels::LoraArgs* lora) const {
  kernels::LinearGroup group;
  for (const Tensor output : y) {
    const int i = group.count++;
    group.linear[i] = LinearOf(u[i], layer, static_cast<Module>(static_cast<int>(first) + i), lora[i]);
    group.y[i] = output;
  }
  if (first == Module::kGate) group.stride = 2 * model_.intermediate_size;
  return group;
}

void KernelExecutor::LinearGroup(std::initializer_list<Tensor> y, Tensor x, const Tensor* u,
                                 int32_t layer, Module first) {
  kernels::LoraArgs lora[kernels::kMostGrouped];
  const kernels::LinearGroup group = GroupOf(y, u, layer, first, lora);
  table_.linear_group_forward(NextLinear(), x, group);
}

void KernelExecutor::LinearGroupBackward(Tensor dx, std::initializer_list<Tensor> dy, Tensor x,
                                         const Tensor* u, int32_t layer, Module first) {
  kernels::LoraArgs lora[kernels::kMostGrouped];
  const kernels::LinearGroup group = GroupOf(dy, u, layer, first, lora);
  table_.linear_group_backward(NextLinear(), dx, x, group);
}

}  // namespace nibble::engine
