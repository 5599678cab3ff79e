#include "tests/kernels/device_table.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "kernels/check.h"
#include "kernels/cuda/workspace.h"
#include "kernels/each_op.h"
#include "kernels/nf4.h"

namespace nibble::kernels::check {
namespace {

constexpr int64_t kGuard = 256;
constexpr uint8_t kPattern = 0xA5;

Backend* device = nullptr;
std::string failure;

const KernelTable& Op() { return device->table(); }
int64_t Act(int64_t count) { return count * DTypeBytes(Op().act); }
int64_t Real(int64_t count) { return count * DTypeBytes(Op().real); }

void Fail(const std::string& what) {
  if (failure.find(what) == std::string::npos) failure += (failure.empty() ? "" : "; ") + what;
}

// One op's arrays. The same host pointer is the same device pointer, so what may alias does. Results come
// back when the call is over.
class Call {
 public:
  // The workspace's contents are of no interest, and it may be large: nothing but its guards is copied. A
  // device that has failed gives no memory and runs nothing: the case fails.
  explicit Call(const Context* host) : workspace_bytes_(host->workspace_bytes) {
    // The cases give what our own code needs; the vendor's comes on top.
    if (device->context().libraries != nullptr) workspace_bytes_ += cuda_workspace::kLibraryBytes;
    workspace_ = Memory(workspace_bytes_ + 2 * kGuard);
    device->Fill(workspace_, kPattern, kGuard);
    device->Fill(workspace_ + kGuard, 0xFF, workspace_bytes_);
    device->Fill(workspace_ + kGuard + workspace_bytes_, kPattern, kGuard);
    device->context().workspace = workspace_ + kGuard;
    device->context().workspace_bytes = workspace_bytes_;
  }
  ~Call() {
    for (Array& array : arrays_) CopyBack(array);
    uint8_t guards[2 * kGuard] = {};
    device->CopyOut(Lane::kCompute, guards, workspace_, kGuard);
    device->CopyOut(Lane::kCompute, guards + kGuard, workspace_ + kGuard + workspace_bytes_, kGuard);
    const bool back = device->Synchronize();
    if (!back || device->error() != nullptr)
      Fail(device->error() != nullptr ? device->error() : "the device failed");
    for (Array& array : arrays_) {
      if (back) Finish(array);
      if (array.base != nullptr) device->Release(array.base);
    }
    if (back && !Untouched(guards, 2 * kGuard)) Fail("written outside of the workspace");
    if (workspace_ != nullptr) device->Release(workspace_);
  }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  Context* context() { return &device->context(); }

  template <typename T>
  const T* In(const T* host, int64_t bytes) {
    return static_cast<const T*>(At(const_cast<T*>(host), bytes, false));
  }
  template <typename T>
  T* Out(T* host, int64_t bytes) {
    return static_cast<T*>(At(host, bytes, true));
  }

  ParamView Param(ParamView view, int64_t count) {
    view.data = In(view.data, count * DTypeBytes(view.type));
    return view;
  }
  WeightView Weight(WeightView w) {
    const int64_t count = w.n * w.k, blocks = AbsmaxCount(count, w.block);
    w.data = In(w.data, WeightBytes(w.type, count));
    w.absmax = In(w.absmax, 4 * blocks);
    w.absmax_codes = In(w.absmax_codes, blocks);
    w.nested_absmax = In(w.nested_absmax, 4 * NestedCount(blocks));
    w.nested_map = In(w.nested_map, 4 * 256);
    w.code_book = In(w.code_book, 4 * (w.type == QuantType::kINT8 ? 256 : 16));
    return w;
  }
  LinearArgs Linear(const LinearArgs& args, bool backward, int which = 0) {
    LinearArgs out = args;
    out.w = Weight(args.w);
    out.bias = Param(args.bias, args.w.n);
    if (args.lora == nullptr) return out;
    LoraArgs& lora = lora_[which];
    lora = *args.lora;
    lora.a = In(lora.a, Act(lora.r * args.w.k));
    lora.b = In(lora.b, Act(lora.r * args.w.n));
    lora.u = Out(lora.u, Act(lora.r * args.m));
    lora.da = backward ? Out(lora.da, Real(lora.r * args.w.k)) : nullptr;
    lora.db = backward ? Out(lora.db, Real(lora.r * args.w.n)) : nullptr;
    out.lora = &lora;
    return out;
  }
  // Columns of one array are told by the first.
  LinearGroup Group(const LinearGroup& group, bool backward) {
    LinearGroup out = group;
    const int64_t m = group.linear[0].m;
    for (int i = 0; i < group.count; ++i) {
      out.linear[i] = Linear(group.linear[i], backward, i);
      const int64_t n = group.stride != 0 ? group.stride : group.linear[i].w.n;
      if (group.stride != 0 && i > 0)
        out.y[i] = static_cast<uint8_t*>(out.y[i - 1]) + Act(group.linear[i - 1].w.n);
      else
        out.y[i] = At(group.y[i], Act(m * n), !backward);
    }
    return out;
  }
  AttentionArgs Attention(AttentionArgs args) {
    args.starts = In(args.starts, 4 * (args.documents + 1));
    return args;
  }

 private:
  struct Array {
    void* host;
    int64_t bytes, offset;
    bool result;
    void* base = nullptr;
    std::vector<uint8_t> all;
  };

  void* At(void* host, int64_t bytes, bool result) {
    if (host == nullptr) return nullptr;
    for (Array& array : arrays_) {
      if (array.host != host) continue;
      KERNEL_CHECK(array.bytes >= bytes);
      array.result |= result;
      return static_cast<uint8_t*>(array.base) + array.offset;
    }
    Array array{host, bytes, kGuard + static_cast<int64_t>(reinterpret_cast<uintptr_t>(host) % 16), result};
    array.all.assign(static_cast<size_t>(array.offset + bytes + kGuard), kPattern);
    if (bytes > 0) std::memcpy(array.all.data() + array.offset, host, static_cast<size_t>(bytes));
    array.base = Memory(static_cast<int64_t>(array.all.size()));
    device->CopyIn(Lane::kCompute, array.base, array.all.data(), static_cast<int64_t>(array.all.size()));
    arrays_.push_back(std::move(array));
    return static_cast<uint8_t*>(arrays_.back().base) + arrays_.back().offset;
  }
  static uint8_t* Memory(int64_t bytes) {
    void* memory = device->Allocate(bytes);
    KERNEL_CHECK(memory != nullptr || device->fault() == Fault::kDevice);
    return static_cast<uint8_t*>(memory);
  }
  void CopyBack(Array& array) {
    device->CopyOut(Lane::kCompute, array.all.data(), array.base, static_cast<int64_t>(array.all.size()));
  }
  static bool Untouched(const uint8_t* at, int64_t bytes) {
    return std::all_of(at, at + bytes, [](uint8_t byte) { return byte == kPattern; });
  }
  static void Finish(const Array& array) {
    if (!Untouched(array.all.data(), array.offset) ||
        !Untouched(array.all.data() + array.offset + array.bytes, kGuard))
      Fail("written outside of an array");
    if (array.result && array.bytes > 0)
      std::memcpy(array.host, array.all.data() + array.offset, static_cast<size_t>(array.bytes));
  }

  int64_t workspace_bytes_;
  uint8_t* workspace_;
  std::vector<Array> arrays_;
  LoraArgs lora_[kMostGrouped];
};

void LinearOps(KernelTable& t) {
  t.decode_weight = [](Context* ctx, void* out, const WeightView& w, int64_t n0, int64_t rows) {
    Call call(ctx);
    Op().decode_weight(call.context(), call.Out(out, Act(rows * w.k)), call.Weight(w), n0, rows);
  };
  t.linear_forward = [](Context* ctx, void* y, const void* x, const LinearArgs& args) {
    Call call(ctx);
    Op().linear_forward(call.context(), call.Out(y, Act(args.m * args.w.n)),
                        call.In(x, Act(args.m * args.w.k)), call.Linear(args, false));
  };
  t.linear_backward = [](Context* ctx, void* dx, bool accumulate, const void* dy, const void* x,
                         const LinearArgs& args) {
    Call call(ctx);
    Op().linear_backward(call.context(), call.Out(dx, Act(args.m * args.w.k)), accumulate,
                         call.In(dy, Act(args.m * args.w.n)), call.In(x, Act(args.m * args.w.k)),
                         call.Linear(args, true));
  };
  t.linear_group_forward = [](Context* ctx, const void* x, const LinearGroup& group) {
    Call call(ctx);
    Op().linear_group_forward(call.context(), call.In(x, Act(group.linear[0].m * group.linear[0].w.k)),
                              call.Group(group, false));
  };
  t.linear_group_backward = [](Context* ctx, void* dx, const void* x, const LinearGroup& group) {
    Call call(ctx);
    const int64_t bytes = Act(group.linear[0].m * group.linear[0].w.k);
    Op().linear_group_backward(call.context(), call.Out(dx, bytes), call.In(x, bytes),
                               call.Group(group, true));
  };
  t.cross_entropy = [](Context* ctx, double* loss, void* dh, const void* h, ParamView head,
                       const int32_t* labels, int64_t m, int64_t dim, int64_t vocab, double scale,
                       float soft_cap) {
    Call call(ctx);
    Op().cross_entropy(call.context(), call.Out(loss, 8), call.Out(dh, Act(m * dim)),
                       call.In(h, Act(m * dim)), call.Param(head, vocab * dim), call.In(labels, 4 * m), m,
                       dim, vocab, scale, soft_cap);
  };
  t.logits = [](Context* ctx, float* out, const void* h, ParamView head, int64_t m, int64_t dim,
                int64_t vocab, float soft_cap) {
    Call call(ctx);
    Op().logits(call.context(), call.Out(out, 4 * m * vocab), call.In(h, Act(m * dim)),
                call.Param(head, vocab * dim), m, dim, vocab, soft_cap);
  };
}

void AttentionOps(KernelTable& t) {
  t.attention_forward = [](Context* ctx, void* out, void* lse, const void* q, const void* k, const void* v,
                           const AttentionArgs& a) {
    Call call(ctx);
    const int64_t queries = Act(a.m * a.heads * a.head_dim), keys = Act(a.m * a.kv_heads * a.head_dim);
    Op().attention_forward(call.context(), call.Out(out, queries), call.Out(lse, Real(a.m * a.heads)),
                           call.In(q, queries), call.In(k, keys), call.In(v, keys), call.Attention(a));
  };
  t.attention_backward = [](Context* ctx, void* dq, void* dk, void* dv, const void* dout, const void* out,
                            const void* lse, const void* q, const void* k, const void* v,
                            const AttentionArgs& a) {
    Call call(ctx);
    const int64_t queries = Act(a.m * a.heads * a.head_dim), keys = Act(a.m * a.kv_heads * a.head_dim);
    Op().attention_backward(call.context(), call.Out(dq, queries), call.Out(dk, keys), call.Out(dv, keys),
                            call.In(dout, queries), call.In(out, queries),
                            call.In(lse, Real(a.m * a.heads)), call.In(q, queries), call.In(k, keys),
                            call.In(v, keys), call.Attention(a));
  };
  t.attention_decode = [](Context* ctx, void* out, const void* q, const void* k, const void* v,
                          int64_t length, const AttentionArgs& a) {
    Call call(ctx);
    const int64_t keys = Act(length * a.kv_heads * a.head_dim);
    Op().attention_decode(call.context(), call.Out(out, Act(a.heads * a.head_dim)),
                          call.In(q, Act(a.heads * a.head_dim)), call.In(k, keys), call.In(v, keys), length,
                          a);
  };
}

void ElementwiseOps(KernelTable& t) {
  t.rmsnorm_forward = [](Context* ctx, void* y, void* rstd, const void* x, ParamView w, int64_t m,
                         int64_t dim, float eps, float unit_offset) {
    Call call(ctx);
    Op().rmsnorm_forward(call.context(), call.Out(y, Act(m * dim)), call.Out(rstd, Real(m)),
                         call.In(x, Act(m * dim)), call.Param(w, dim), m, dim, eps, unit_offset);
  };
  t.rmsnorm_backward = [](Context* ctx, void* dx, bool accumulate, const void* dy, const void* x,
                          ParamView w, const void* rstd, int64_t m, int64_t dim, float unit_offset) {
    Call call(ctx);
    Op().rmsnorm_backward(call.context(), call.Out(dx, Act(m * dim)), accumulate, call.In(dy, Act(m * dim)),
                          call.In(x, Act(m * dim)), call.Param(w, dim), call.In(rstd, Real(m)), m, dim,
                          unit_offset);
  };
  t.add = [](Context* ctx, void* out, const void* a, const void* b, int64_t count) {
    Call call(ctx);
    Op().add(call.context(), call.Out(out, Act(count)), call.In(a, Act(count)), call.In(b, Act(count)),
             count);
  };
  t.rope = [](Context* ctx, void* x, const int32_t* positions, const float* cos_sin, int64_t m, int64_t heads,
              int64_t head_dim, int64_t rotary_dim, bool inverse) {
    Call call(ctx);
    const int32_t last = m == 0 ? -1 : *std::max_element(positions, positions + m);
    Op().rope(call.context(), call.Out(x, Act(m * heads * head_dim)), call.In(positions, 4 * m),
              call.In(cos_sin, 4 * (last + 1) * rotary_dim), m, heads, head_dim, rotary_dim, inverse);
  };
  t.gated_forward = [](Context* ctx, void* out, const void* gate, const void* up, const GatedArgs& args) {
    Call call(ctx);
    const int64_t stride = args.stride != 0 ? args.stride : args.width;
    const int64_t count = args.rows * args.width, reach = (args.rows - 1) * stride + args.width;
    Op().gated_forward(call.context(), call.Out(out, Act(count)), call.In(gate, Act(reach)),
                       call.In(up, Act(reach)), args);
  };
  t.gated_backward = [](Context* ctx, void* dgate, void* dup, const void* dout, const void* gate,
                        const void* up, const GatedArgs& args) {
    Call call(ctx);
    const int64_t stride = args.stride != 0 ? args.stride : args.width;
    const int64_t count = args.rows * args.width, reach = (args.rows - 1) * stride + args.width;
    Op().gated_backward(call.context(), call.Out(dgate, Act(reach)), call.Out(dup, Act(reach)),
                        call.In(dout, Act(count)), call.In(gate, Act(reach)), call.In(up, Act(reach)), args);
  };
  t.split_columns = [](Context* ctx, const void* all, const ColumnsArgs& args) {
    Call call(ctx);
    ColumnsArgs there = args;
    for (int p = 0; p < kMostColumns; ++p)
      there.part[p] = call.Out(args.part[p], Act(args.rows * args.width[p]));
    Op().split_columns(call.context(), call.In(all, Act(args.rows * args.AllWidth())), there);
  };
  t.join_columns = [](Context* ctx, void* all, const ColumnsArgs& args) {
    Call call(ctx);
    ColumnsArgs there = args;
    for (int p = 0; p < kMostColumns; ++p)
      there.part[p] = const_cast<void*>(
          static_cast<const void*>(call.In(args.part[p], Act(args.rows * args.width[p]))));
    Op().join_columns(call.context(), call.Out(all, Act(args.rows * args.AllWidth())), there);
  };
  t.embedding_forward = [](Context* ctx, void* out, const int32_t* ids, ParamView table, int64_t m,
                           int64_t dim, float scale) {
    Call call(ctx);
    const int32_t last = m == 0 ? -1 : *std::max_element(ids, ids + m);
    Op().embedding_forward(call.context(), call.Out(out, Act(m * dim)), call.In(ids, 4 * m),
                           call.Param(table, (last + 1) * dim), m, dim, scale);
  };
  t.to_act = [](Context* ctx, void* out, const void* in, int64_t count) {
    Call call(ctx);
    Op().to_act(call.context(), call.Out(out, Act(count)), call.In(in, Real(count)), count);
  };
}

void OptimizerOps(KernelTable& t) {
  t.adamw = [](Context* ctx, void* p, const void* g, void* m, void* v, const AdamWArgs& args) {
    Call call(ctx);
    const int64_t bytes = Real(args.count);
    Op().adamw(call.context(), call.Out(p, bytes), call.In(g, bytes), call.Out(m, bytes),
               call.Out(v, bytes), args);
  };
  t.adamw8 = [](Context* ctx, void* p, const void* g, const Adam8State& state, const AdamWArgs& args) {
    Call call(ctx);
    const int64_t bytes = Real(args.count), blocks = (args.count + kAdam8Block - 1) / kAdam8Block;
    const Adam8State on_device{call.Out(state.m, args.count),        call.Out(state.v, args.count),
                               call.Out(state.m_absmax, 4 * blocks), call.Out(state.v_absmax, 4 * blocks),
                               call.In(state.signed_map, 4 * 256),   call.In(state.unsigned_map, 4 * 256)};
    Op().adamw8(call.context(), call.Out(p, bytes), call.In(g, bytes), on_device, args);
  };
  t.sum_squares = [](Context* ctx, double* out, const void* x, int64_t count) {
    Call call(ctx);
    Op().sum_squares(call.context(), call.Out(out, 8), call.In(x, Real(count)), count);
  };
}

}  // namespace

KernelTable TableForHostMemory(Backend& backend) {
  device = &backend;
  KernelTable table = backend.table();
  LinearOps(table);
  AttentionOps(table);
  ElementwiseOps(table);
  OptimizerOps(table);
#define NIBBLE_KEEP_MISSING(op) \
  if (backend.table().op == nullptr) table.op = nullptr;
  NIBBLE_EACH_OP(NIBBLE_KEEP_MISSING)
#undef NIBBLE_KEEP_MISSING
  return table;
}

std::string TakeDeviceFailure() { return std::exchange(failure, std::string()); }

}  // namespace nibble::kernels::check
