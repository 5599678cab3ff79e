// The optimizer step of KernelExecutor, moments on the device or paged; what masters and moments begin as.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "engine/kernel_executor.h"
#include "engine/spec/step.h"
#include "kernels/counter.h"
#include "kernels/nf4.h"

namespace nibble::engine {

using kernels::Context;
using kernels::Lane;
using spec::StepPhase;

KernelExecutor::Update KernelExecutor::Optimize(double learning_rate, int64_t update,
                                                int64_t count) {
  op_ = static_cast<size_t>(plan_.optimizer_op);
  adamw_ = {.count = plan_.adapters.elements,
            .learning_rate = learning_rate,
            .beta1 = spec_.adam_beta1,
            .beta2 = spec_.adam_beta2,
            .epsilon = spec_.adam_epsilon,
            .weight_decay = spec_.weight_decay,
            .step = update};
  micro_batches_ = count;
  update_ = {};
  spec::OptimizerStep(*this);
  update_.applied = apply_;
  return update_;
}

void KernelExecutor::SumSquares() {
  table_.sum_squares(NextOp(StepPhase::kOptimizer), reinterpret_cast<double*>(LossSlot(loss_slots())),
                     persistent_ + plan_.persistent.gradient, plan_.adapters.elements);
  // The one time in a step that the host waits.
  backend_.CopyOut(Lane::kCompute, scalars_, LossSlot(0), 8 * (loss_slots() + 1));
  apply_ = backend_.Synchronize();
  staged_ = 0;
  for (int64_t i = 0; i < micro_batches_; ++i) update_.loss_sum += scalars_[i];
  const double sum_squares = scalars_[loss_slots()];
  const double scale = loss_scale_.scale;
  const double norm = std::sqrt(sum_squares) / scale;
  update_.grad_norm = norm;
  apply_ = apply_ && std::isfinite(update_.loss_sum) && std::isfinite(sum_squares);
  adamw_.gradient_scale = 1 / scale;
  if (spec_.max_grad_norm > 0 && norm > spec_.max_grad_norm) {
    adamw_.gradient_scale = spec_.max_grad_norm / (norm + 1e-6) / scale;  // torch's clip_grad_norm_
  }
  if (table_.act == kernels::DType::kF16) {
    update_.overflow = !apply_ && scale > 1;
    loss_scale_.Update(apply_);
  }
}

void KernelExecutor::AdamW() {
  Context* context = NextOp(StepPhase::kOptimizer);
  if (!apply_) return;
  if (plan_.paged) return UpdatePaged(context);
  const spec::PersistentLayout& at = plan_.persistent;
  UpdateAdamW(context, 0, plan_.adapters.elements,
              {persistent_ + at.moment1, persistent_ + at.moment2, persistent_ + at.absmax1,
               persistent_ + at.absmax2});
}

void KernelExecutor::UpdateAdamW(Context* context, int64_t first, int64_t count,
                                 const MomentPlaces& moments) {
  const spec::PersistentLayout& at = plan_.persistent;
  const int64_t offset = first * kernels::DTypeBytes(table_.real);
  std::byte* const master = persistent_ + at.master + offset;
  std::byte* const gradient = persistent_ + at.gradient + offset;
  kernels::AdamWArgs args = adamw_;
  args.count = count;
  if (spec_.optimizer != spec::OptimizerKind::kAdamW8bit) {
    table_.adamw(context, master, gradient, moments.m, moments.v, args);
    return;
  }
  const auto* maps = reinterpret_cast<const float*>(persistent_ + at.maps);
  const kernels::Adam8State state{.m = reinterpret_cast<uint8_t*>(moments.m),
                                  .v = reinterpret_cast<uint8_t*>(moments.v),
                                  .m_absmax = reinterpret_cast<float*>(moments.m_absmax),
                                  .v_absmax = reinterpret_cast<float*>(moments.v_absmax),
                                  .signed_map = maps,
                                  .unsigned_map = maps + 256};
  table_.adamw8(context, master, gradient, state, args);
}

KernelExecutor::MomentPlaces KernelExecutor::PlacesIn(std::byte* chunk) const {
  const int64_t elements = spec::ChunkOf(spec_, plan_.adapters.elements).elements;
  const bool small = spec_.optimizer == spec::OptimizerKind::kAdamW8bit;
  const int64_t bytes = small ? elements : 4 * elements;
  const int64_t absmax_bytes = elements / spec::kMomentBlock * 4;
  return {chunk, chunk + bytes, chunk + 2 * bytes, chunk + 2 * bytes + absmax_bytes};
}

void KernelExecutor::CopyMoments(Lane lane, std::byte* chunk, int64_t first, int64_t count) {
  const spec::PinnedLayout& at = plan_.pinned;
  const MomentPlaces places = PlacesIn(chunk);
  const auto copy = [&](std::byte* device, int64_t array, int64_t offset, int64_t bytes) {
    std::byte* const host = pinned_ + array + offset;
    if (lane == Lane::kIn) {
      backend_.CopyIn(lane, device, host, bytes);
    } else {
      backend_.CopyOut(lane, host, device, bytes);
    }
  };
  const int64_t wide = spec_.optimizer == spec::OptimizerKind::kAdamW8bit ? 1 : 4;
  copy(places.m, at.moment1, wide * first, wide * count);
  copy(places.v, at.moment2, wide * first, wide * count);
  if (wide == 4) return;
  const int64_t scale_first = first / spec::kMomentBlock * 4, scale_bytes = count / spec::kMomentBlock * 4;
  copy(places.m_absmax, at.absmax1, scale_first, scale_bytes);
  copy(places.v_absmax, at.absmax2, scale_first, scale_bytes);
}

// While a chunk is worked on the next one comes in and the one before goes out.
void KernelExecutor::UpdatePaged(Context* context) {
  const int64_t elements = plan_.adapters.elements;
  const spec::MomentChunk chunk = spec::ChunkOf(spec_, elements);
  std::byte* const buffers = static_cast<std::byte*>(context->workspace);
  const auto buffer = [&](int64_t first) { return buffers + first / chunk.elements % 2 * chunk.bytes; };
  const auto count = [&](int64_t first) { return std::min(chunk.elements, elements - first); };
  backend_.Wait(Lane::kIn, Lane::kCompute);  // who had this memory before is done
  CopyMoments(Lane::kIn, buffer(0), 0, count(0));
  for (int64_t first = 0; first < elements; first += chunk.elements) {
    backend_.Wait(Lane::kCompute, Lane::kIn);
    const int64_t next = first + chunk.elements;
    if (next < elements) {
      backend_.Wait(Lane::kIn, Lane::kOut);  // what its buffer held has gone out
      CopyMoments(Lane::kIn, buffer(next), next, count(next));
    }
    UpdateAdamW(context, first, count(first), PlacesIn(buffer(first)));
    backend_.Wait(Lane::kOut, Lane::kCompute);
    CopyMoments(Lane::kOut, buffer(first), first, count(first));
  }
  backend_.Wait(Lane::kCompute, Lane::kOut);
}

void KernelExecutor::ToAct() {
  Context* context = NextOp(StepPhase::kOptimizer);
  if (!apply_) return;
  table_.to_act(context, persistent_ + plan_.persistent.compute,
                persistent_ + plan_.persistent.master, plan_.adapters.elements);
}

void KernelExecutor::RefreshCompute() {
  apply_ = true;
  op_ = static_cast<size_t>(plan_.evaluate_op) - 1;
  ToAct();
}

void InitOptimizer(kernels::Backend& backend, const spec::CompiledPlan& plan,
                   const spec::TrainSpec& spec, std::byte* persistent, std::byte* pinned) {
  if (spec.optimizer != spec::OptimizerKind::kAdamW8bit) return;  // zero is zero bytes
  const float* const maps[] = {kernels::SignedDynamicMap(), kernels::UnsignedDynamicMap()};
  const int64_t codes[] = {plan.persistent.moment1, plan.persistent.moment2};
  const int64_t pinned_codes[] = {plan.pinned.moment1, plan.pinned.moment2};
  constexpr int64_t kMapBytes = 256 * sizeof(float);
  for (int i = 0; i < 2; ++i) {
    backend.CopyIn(kernels::Lane::kCompute, persistent + plan.persistent.maps + i * kMapBytes,
                   maps[i], kMapBytes);
    const auto zero = std::find(maps[i], maps[i] + 256, 0.0f) - maps[i];
    if (plan.paged) {
      std::memset(pinned + pinned_codes[i], static_cast<int>(zero),
                  static_cast<size_t>(plan.adapters.elements));
      continue;
    }
    const std::vector<uint8_t> zeros(static_cast<size_t>(plan.adapters.elements),
                                     static_cast<uint8_t>(zero));
    backend.CopyIn(kernels::Lane::kCompute, persistent + codes[i], zeros.data(),
                   plan.adapters.elements);
    backend.Synchronize();
  }
}

namespace {

// Separates these draws from dropout's, whose streams begin with a step number.
constexpr uint64_t kInitStream = 0xA0ull << 56;

template <typename T>
void InitMasters(const spec::CompiledPlan& plan, const spec::TrainSpec& spec, T* master) {
  std::fill(master, master + plan.adapters.elements, T{0});
  for (const spec::AdapterMatrix& matrix : plan.adapters.matrices) {
    const uint64_t stream = kInitStream | static_cast<uint64_t>(matrix.layer) << 3 |
                            static_cast<uint64_t>(spec::NumberOf(matrix.module));
    const float bound = 1.0f / std::sqrt(static_cast<float>(matrix.in));
    for (int64_t i = 0; i < spec.lora_r * matrix.in; ++i) {
      const float unit = kernels::CounterUniform(spec.seed, stream, static_cast<uint64_t>(i));
      master[matrix.a + i] = static_cast<T>((2.0f * unit - 1.0f) * bound);
    }
  }
}

}  // namespace

void InitAdapters(const spec::CompiledPlan& plan, const spec::TrainSpec& spec, kernels::DType real,
                  void* master) {
  if (real == kernels::DType::kF64) {
    InitMasters(plan, spec, static_cast<double*>(master));
  } else {
    InitMasters(plan, spec, static_cast<float*>(master));
  }
}

}  // namespace nibble::engine
