#include "kernels/cuda/panels.h"

#include "kernels/cuda/decode.h"
#include "kernels/cuda/workspace.h"

namespace nibble::kernels::NIBBLE_CUDA {
namespace {

template <typename Act>
void Decode(Context* ctx, void* out, const Stack& stack, bool backward, int64_t first, int64_t count) {
  auto* to = static_cast<Act*>(out);
  if (backward)
    DecodePanel<Act>(ctx, to, stack.w, stack.count, 0, stack.n, first, count);
  else
    DecodePanel<Act>(ctx, to, stack.w, stack.count, first, count, 0, stack.k);
}

// Queues a panel's decoding beside the compute lane, into the tile whose turn it is: behind the product that
// read that tile last, which is queued already.
template <typename Act>
void Begin(Context* ctx, const Stack& stack, bool backward, int64_t first) {
  DecodeAhead& ahead = *ctx->ahead;
  const int64_t end = backward ? stack.k : stack.n;
  const int64_t count = Min(PanelStep(stack, backward), end - first);
  KERNEL_CHECK(count * (backward ? stack.n : stack.k) * 2 <= ahead.tile_bytes);
  WaitForStream(ctx, ahead.stream, ctx->stream, ahead.compute_event);
  Context beside = *ctx;
  beside.stream = ahead.stream;
  Decode<Act>(&beside, ahead.tile[ahead.turn], stack, backward, first, count);
  ctx->error = beside.error;
  ahead.pending = {stack.w[0].data, backward, first, count};
}

}  // namespace

template <typename Act>
const Act* WholeStack(const Stack& stack, bool* stored) {
  const auto stored_act = [](const WeightView& w) {
    return w.type == QuantType::kBF16 && ActType<Act>::kType == DType::kBF16;
  };
  *stored = stored_act(stack.w[0]);
  const Act* whole = nullptr;
  const Act* next = nullptr;
  for (int i = 0; i < stack.count; ++i) {
    const WeightView& w = stack.w[i];
    if (stored_act(w) != *stored) return nullptr;
    const auto* at = static_cast<const Act*>(*stored ? w.data : w.decoded);
    if (at == nullptr || (i > 0 && at != next)) return nullptr;
    if (i == 0) whole = at;
    next = at + w.n * w.k;
  }
  return whole;
}

int64_t PanelStep(const Stack& stack, bool backward) {
  return backward ? cuda_workspace::PanelRows(stack.k, stack.n)
                  : cuda_workspace::PanelRows(stack.n, stack.k);
}

void LeavePanel(Context* ctx) {
  DecodeAhead* const ahead = ctx->ahead;
  if (ahead == nullptr || ahead->pending.data == nullptr) return;
  WaitForStream(ctx, ctx->stream, ahead->stream, ahead->ahead_event);
  ahead->pending = {};
}

template <typename Act>
const Act* TakePanel(Context* ctx, const Stack& stack, bool backward, int64_t first, int64_t count,
                     Act* panel) {
  DecodeAhead* const ahead = ctx->ahead;
  if (ahead == nullptr) {
    Decode<Act>(ctx, panel, stack, backward, first, count);
    return panel;
  }
  const DecodeAhead::Panel wanted{stack.w[0].data, backward, first, count};
  const bool there = ahead->pending == wanted;
  LeavePanel(ctx);
  void* const tile = ahead->tile[ahead->turn];
  ahead->turn ^= 1;
  if (!there) {
    KERNEL_CHECK(count * (backward ? stack.n : stack.k) * 2 <= ahead->tile_bytes);
    Decode<Act>(ctx, tile, stack, backward, first, count);
  }
  if (first + count < (backward ? stack.k : stack.n))
    Begin<Act>(ctx, stack, backward, first + count);
  else if (ahead->next_count > 0)
    Begin<Act>(ctx, StackOf(ahead->next, ahead->next_count), ahead->next_backward, 0);
  return static_cast<const Act*>(tile);
}

#define INSTANTIATE(Act)                                     \
  template const Act* WholeStack<Act>(const Stack&, bool*);  \
  template const Act* TakePanel<Act>(Context*, const Stack&, bool, int64_t, int64_t, Act*);
INSTANTIATE(BF16)
INSTANTIATE(FP16)
#undef INSTANTIATE

}  // namespace nibble::kernels::NIBBLE_CUDA
