#include "engine/testing/recording_table.h"

#include <algorithm>

#include "base/status.h"

namespace nibble::engine::testing {
namespace {

using namespace kernels;  // NOLINT: every line below is about them

struct Piece {
  const std::byte* begin = nullptr;
  int64_t bytes = 0;
  int64_t high = 0;
};

KernelTable recording;
const KernelTable* table = nullptr;
Piece pieces[2];
int64_t overruns = 0;
int64_t ops = 0;

void Note(const void* data, int64_t bytes) {
  if (data == nullptr || bytes == 0) return;
  const auto* at = static_cast<const std::byte*>(data);
  for (Piece& piece : pieces) {
    if (at < piece.begin || at >= piece.begin + piece.bytes) continue;
    const int64_t end = at - piece.begin + bytes;
    overruns += end > piece.bytes;
    piece.high = std::max(piece.high, end);
  }
}
void Begin(const Context* context) {
  ++ops;
  Note(context->workspace, context->workspace_bytes);
}
int64_t Act(int64_t count) { return count * DTypeBytes(table->act); }
int64_t Real(int64_t count) { return count * DTypeBytes(table->real); }

void NoteLora(const LoraArgs* lora, const LinearArgs& args, bool backward) {
  if (lora == nullptr) return;
  Note(lora->a, Act(lora->r * args.w.k));
  Note(lora->b, Act(args.w.n * lora->r));
  Note(lora->u, Act(args.m * lora->r));
  if (!backward) return;
  Note(lora->da, Real(lora->r * args.w.k));
  Note(lora->db, Real(args.w.n * lora->r));
}

void LinearForward(Context* c, void* y, const void* x, const LinearArgs& args) {
  Begin(c);
  Note(y, Act(args.m * args.w.n));
  Note(x, Act(args.m * args.w.k));
  NoteLora(args.lora, args, false);
  table->linear_forward(c, y, x, args);
}
void LinearBackward(Context* c, void* dx, bool accumulate, const void* dy, const void* x,
                    const LinearArgs& args) {
  Begin(c);
  Note(dx, Act(args.m * args.w.k));
  Note(dy, Act(args.m * args.w.n));
  Note(x, Act(args.m * args.w.k));
  NoteLora(args.lora, args, true);
  table->linear_backward(c, dx, accumulate, dy, x, args);
}
void RmsNormForward(Context* c, void* y, void* rstd, const void* x, ParamView w, int64_t m,
                    int64_t dim, float eps, float unit_offset) {
  Begin(c);
  Note(y, Act(m * dim));
  Note(x, Act(m * dim));
  Note(rstd, Real(m));
  table->rmsnorm_forward(c, y, rstd, x, w, m, dim, eps, unit_offset);
}
void RmsNormBackward(Context* c, void* dx, bool accumulate, const void* dy, const void* x,
                     ParamView w, const void* rstd, int64_t m, int64_t dim, float unit_offset) {
  Begin(c);
  Note(dx, Act(m * dim));
  Note(dy, Act(m * dim));
  Note(x, Act(m * dim));
  Note(rstd, Real(m));
  table->rmsnorm_backward(c, dx, accumulate, dy, x, w, rstd, m, dim, unit_offset);
}
void Add(Context* c, void* out, const void* a, const void* b, int64_t count) {
  Begin(c);
  for (const void* data : {static_cast<const void*>(out), a, b}) Note(data, Act(count));
  table->add(c, out, a, b, count);
}
void Rope(Context* c, void* x, const int32_t* positions, const float* cos_sin, int64_t m, int64_t heads,
          int64_t head_dim, int64_t rotary_dim, bool inverse) {
  Begin(c);
  Note(x, Act(m * heads * head_dim));
  Note(positions, 4 * m);
  const int32_t last = *std::max_element(positions, positions + m);
  Note(cos_sin, (int64_t{last} + 1) * rotary_dim * 4);
  table->rope(c, x, positions, cos_sin, m, heads, head_dim, rotary_dim, inverse);
}
void NoteAttention(const AttentionArgs& a, std::initializer_list<const void*> queries,
                   std::initializer_list<const void*> keys, const void* lse) {
  for (const void* q : queries) Note(q, Act(a.m * a.heads * a.head_dim));
  for (const void* k : keys) Note(k, Act(a.m * a.kv_heads * a.head_dim));
  Note(lse, Real(a.m * a.heads));
  Note(a.starts, 4 * (a.documents + 1));
}
void AttentionForward(Context* c, void* out, void* lse, const void* q, const void* k, const void* v,
                      const AttentionArgs& args) {
  Begin(c);
  NoteAttention(args, {out, q}, {k, v}, lse);
  table->attention_forward(c, out, lse, q, k, v, args);
}
void AttentionBackward(Context* c, void* dq, void* dk, void* dv, const void* dout, const void* out,
                       const void* lse, const void* q, const void* k, const void* v,
                       const AttentionArgs& args) {
  Begin(c);
  NoteAttention(args, {dq, dout, out, q}, {dk, dv, k, v}, lse);
  table->attention_backward(c, dq, dk, dv, dout, out, lse, q, k, v, args);
}
// From the first element to the last of an array with a stride.
int64_t Reach(const GatedArgs& args) {
  const int64_t stride = args.stride != 0 ? args.stride : args.width;
  return (args.rows - 1) * stride + args.width;
}
void GatedForward(Context* c, void* out, const void* gate, const void* up, const GatedArgs& args) {
  Begin(c);
  Note(out, Act(args.rows * args.width));
  for (const void* data : {gate, up}) Note(data, Act(Reach(args)));
  table->gated_forward(c, out, gate, up, args);
}
void GatedBackward(Context* c, void* dgate, void* dup, const void* dout, const void* gate,
                   const void* up, const GatedArgs& args) {
  Begin(c);
  for (const void* data : {static_cast<const void*>(dgate), static_cast<const void*>(dup), gate, up})
    Note(data, Act(Reach(args)));
  Note(dout, Act(args.rows * args.width));
  table->gated_backward(c, dgate, dup, dout, gate, up, args);
}
void NoteColumns(const void* all, const ColumnsArgs& args) {
  Note(all, Act(args.rows * args.AllWidth()));
  for (int p = 0; p < kMostColumns; ++p) Note(args.part[p], Act(args.rows * args.width[p]));
}
void SplitColumns(Context* c, const void* all, const ColumnsArgs& args) {
  Begin(c);
  NoteColumns(all, args);
  table->split_columns(c, all, args);
}
void JoinColumns(Context* c, void* all, const ColumnsArgs& args) {
  Begin(c);
  NoteColumns(all, args);
  table->join_columns(c, all, args);
}
void Embedding(Context* c, void* out, const int32_t* ids, ParamView param, int64_t m, int64_t dim,
               float scale) {
  Begin(c);
  Note(out, Act(m * dim));
  Note(ids, 4 * m);
  table->embedding_forward(c, out, ids, param, m, dim, scale);
}
void CrossEntropy(Context* c, double* loss_sum, void* dh, const void* h, ParamView head,
                  const int32_t* labels, int64_t m, int64_t dim, int64_t vocab,
                  double gradient_scale, float soft_cap) {
  Begin(c);
  Note(loss_sum, 8);
  Note(dh, Act(m * dim));
  Note(h, Act(m * dim));
  Note(labels, 4 * m);
  table->cross_entropy(c, loss_sum, dh, h, head, labels, m, dim, vocab, gradient_scale, soft_cap);
}
void AdamW(Context* c, void* p, const void* g, void* m, void* v, const AdamWArgs& args) {
  Begin(c);
  for (const void* data : {static_cast<const void*>(p), g, static_cast<const void*>(m),
                           static_cast<const void*>(v)}) {
    Note(data, Real(args.count));
  }
  table->adamw(c, p, g, m, v, args);
}
void AdamW8(Context* c, void* p, const void* g, const Adam8State& state, const AdamWArgs& args) {
  Begin(c);
  Note(p, Real(args.count));
  Note(g, Real(args.count));
  Note(state.m, args.count);
  Note(state.v, args.count);
  const int64_t blocks = (args.count + kAdam8Block - 1) / kAdam8Block;
  Note(state.m_absmax, 4 * blocks);
  Note(state.v_absmax, 4 * blocks);
  Note(state.signed_map, 1024);
  Note(state.unsigned_map, 1024);
  table->adamw8(c, p, g, state, args);
}
void SumSquares(Context* c, double* out, const void* x, int64_t count) {
  Begin(c);
  Note(out, 8);
  Note(x, Real(count));
  table->sum_squares(c, out, x, count);
}
void ToAct(Context* c, void* out, const void* in, int64_t count) {
  Begin(c);
  Note(out, Act(count));
  Note(in, Real(count));
  table->to_act(c, out, in, count);
}

}  // namespace

const KernelTable& RecordingTable(const KernelTable& inner) {
  table = &inner;
  recording = inner;
  recording.linear_forward = LinearForward;
  recording.linear_backward = LinearBackward;
  recording.rmsnorm_forward = RmsNormForward;
  recording.rmsnorm_backward = RmsNormBackward;
  recording.add = Add;
  recording.rope = Rope;
  recording.attention_forward = AttentionForward;
  recording.attention_backward = AttentionBackward;
  recording.gated_forward = GatedForward;
  recording.gated_backward = GatedBackward;
  recording.split_columns = SplitColumns;
  recording.join_columns = JoinColumns;
  recording.embedding_forward = Embedding;
  recording.cross_entropy = CrossEntropy;
  recording.adamw = AdamW;
  recording.adamw8 = AdamW8;
  recording.sum_squares = SumSquares;
  recording.to_act = ToAct;
  return recording;
}

void Watch(const void* first, int64_t first_bytes, const void* second, int64_t second_bytes) {
  pieces[0] = {static_cast<const std::byte*>(first), first_bytes, 0};
  pieces[1] = {static_cast<const std::byte*>(second), second_bytes, 0};
  overruns = ops = 0;
}

int64_t HighWater(int piece) { return pieces[piece].high; }
int64_t Overruns() { return overruns; }
int64_t OpsSeen() { return ops; }

}  // namespace nibble::engine::testing
