#include "engine/lockstep.h"

#include <chrono>

#include "base/status.h"

namespace nibble::engine {

using spec::StepOp;
using spec::StepOpKind;

void KernelExecutor::PrepareInPieces() {
  CHECK(plan_.persistent.activations >= 0 && !plan_.pads);
  if (program_.empty()) program_ = spec::RecordStep(model_, spec_);
  CHECK(program_.size() == static_cast<size_t>(plan_.optimizer_op));
}

int32_t KernelExecutor::RunToProduct() {
  const auto tensor = [this](int32_t index) { return index < 0 ? nullptr : At(index); };
  context_.most_labels = shape_.most_labels;
  while (op_ < program_.size() && program_[op_].place < 0) spec::Perform(*this, program_[op_], tensor);
  Rest();
  return op_ < program_.size() ? program_[op_].place : -1;
}

kernels::LinearPart KernelExecutor::TakeProduct(kernels::LoraArgs& lora) {
  const StepOp& op = program_[op_++];
  const auto tensor = [&](size_t i) { return op.tensors[i] < 0 ? nullptr : At(op.tensors[i]); };
  kernels::LinearPart part;
  part.out = tensor(0);
  part.accumulate = op.flag;
  part.in = tensor(1);
  const bool backward = op.kind == StepOpKind::kLinearBackward;
  if (backward) part.x = tensor(2);
  part.args = LinearOf(tensor(backward ? 3 : 2), op.layer, op.module, lora);
  return part;
}

void KernelExecutor::CountProduct(int64_t time_ns) {
  phase_ns_[static_cast<size_t>(spec::StepPhase::kLinear)] += time_ns;
}

void Lockstep::Advance(const Member& member, At& at) {
  at.place = member.executor->RunToProduct();
  if (at.place >= 0) return;
  if (++at.micro_batch == static_cast<int64_t>(member.batches.size())) {
    at.done = true;
    return;
  }
  member.executor->Begin(member.batches[static_cast<size_t>(at.micro_batch)], member.gradient_scale,
                         member.step, at.micro_batch);
  at.place = member.executor->RunToProduct();
}

void Lockstep::Multiply(std::span<const Member> members, const At& first) {
  size_t count = 0;
  int64_t rows = 0;
  bool backward = false;
  std::array<size_t, kMost> who;
  for (size_t i = 0; i < members.size(); ++i) {
    if (at_[i].done || at_[i].micro_batch != first.micro_batch || at_[i].place != first.place) continue;
    backward = members[i].executor->product_is_backward();
    parts_[count] = members[i].executor->TakeProduct(loras_[count]);
    rows += parts_[count].args.m;
    who[count++] = i;
  }
  context_.workspace = workspace_;
  context_.workspace_bytes = workspace_bytes_;
  const auto begin = std::chrono::steady_clock::now();
  (backward ? table_.linear_backward_parts : table_.linear_forward_parts)(&context_, parts_.data(),
                                                                          static_cast<int64_t>(count));
  const int64_t time_ns = std::chrono::nanoseconds(std::chrono::steady_clock::now() - begin).count();
  for (size_t i = 0; i < count; ++i) {
    members[who[i]].executor->CountProduct(time_ns * parts_[i].args.m / rows);
    Advance(members[who[i]], at_[who[i]]);
  }
}

void Lockstep::Run(std::span<const Member> members) {
  CHECK(members.size() <= kMost);
  for (size_t i = 0; i < members.size(); ++i) {
    at_[i] = {};
    members[i].executor->Begin(members[i].batches[0], members[i].gradient_scale, members[i].step, 0);
    at_[i].place = members[i].executor->RunToProduct();
  }
  while (true) {
    const At* first = nullptr;
    for (size_t i = 0; i < members.size(); ++i) {
      const At& at = at_[i];
      if (at.done) continue;
      if (first == nullptr || at.micro_batch < first->micro_batch ||
          (at.micro_batch == first->micro_batch && at.place < first->place)) {
        first = &at;
      }
    }
    if (first == nullptr || members.front().executor->StepStopped()) return;
    Multiply(members, At(*first));
  }
}

}  // namespace nibble::engine
