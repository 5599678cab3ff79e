// THE contract between the engine and a backend.
//
// A backend is memory, a context and a KernelTable of raw-pointer functions. `ref` is the definition:
// plain loops, in float and in double. Every other table must agree with it (tests/kernels). The engine
// checks shapes before it calls; `ref` asserts them again.
//
// Words and shapes. M tokens (rows) of a micro-batch, all its documents one behind the other without
// padding; K inputs, N outputs of a linear; r rank; H query heads, G key/value heads, D head size; V
// vocabulary. All arrays are dense and row-major.
//
// Types. "act" is the table's activation type (ref: float, or double; cpu: bf16). "real" is the type of
// everything that must not lose bits: adapter masters, gradients, moments, rstd, lse (float; double in
// ref64). "param" is a frozen 16- or 32-bit array that says its own type.
//
// Rounding. A product is accumulated in real; one rounding to act at the end. A frozen quantized weight
// is code_book[code] * absmax in fp32, rounded once to the act type (bitsandbytes' rule).
//
// Accumulation rule. Parameter gradients (dA, dB) add. Activation gradients overwrite, except where an
// argument says accumulate.
//
// Determinism. The same arguments give the same bits for every thread count: work is cut into fixed
// pieces and reductions have a fixed order. No atomics on floating point.
//
// Workspace. `ctx->workspace` is one buffer of `ctx->workspace_bytes`; each op says what it needs of it
// (kernels/cpu/workspace.h), and engine/spec plans the largest. Nothing is allocated inside an op.
//
// Threads. One thread drives a context. Ops run their pieces on ctx->pool.
//
// Asynchronous backends (cuda). Every pointer handed to an op is memory of the backend, results included
// (loss_sum, sum_squares); an op enqueues on ctx->stream and returns. The caller waits for the stream before
// it reads. The small host arrays in the argument structs (none today hold more than scalars) are read
// before the call returns.
#pragma once

#include <cstdint>

namespace nibble::kernels {

enum class DType : uint8_t { kF32 = 0, kBF16 = 1, kF64 = 2, kF16 = 3 };

constexpr int64_t DTypeBytes(DType type) {
  return type == DType::kF64 ? 8 : type == DType::kF32 ? 4 : 2;
}

class ThreadPool;  // kernels/parallel.h
struct DecodeAhead;

struct Context {
  void* workspace = nullptr;
  int64_t workspace_bytes = 0;
  ThreadPool* pool = nullptr;    // null = run on the calling thread
  void* stream = nullptr;        // of an asynchronous backend; null on the CPU
  void* libraries = nullptr;     // of the backend (handles of vendor libraries); null on the CPU
  // First error of an asynchronous backend; null = none, and always on the CPU.
  const char* error = nullptr;
  // Of cross_entropy: no more rows than this have a label; -1 = not known. What a backend that does not look
  // leaves out; it changes no bit.
  int64_t most_labels = -1;
  // Of asynchronous backends, in their memory: read when cross_entropy runs, in place of its argument, so
  // that a recording of the op (backend.h) can run with other values. Null = the argument.
  const double* late_gradient_scale = nullptr;
  // Of asynchronous backends: null = every linear op decodes its weights when it runs.
  DecodeAhead* ahead = nullptr;
};

// What the elements of a frozen matrix are stored as.
enum class QuantType : uint8_t { kF32 = 0, kBF16 = 1, kNF4 = 2, kFP4 = 3, kINT4 = 4, kINT8 = 5 };

// Where the elements of a frozen matrix lie.
//
// kFlat is bitsandbytes' order: element i of the row-major [N, K] matrix is in byte i / 2, even i in the high
// nibble (INT8: in byte i), and belongs to scale i / block.
//
// kTiles is for quantized weights with blocks of kTileBlock whose K is a multiple of it. Rows are taken
// kTileHeight at a time, in the last group as many as are left. Of a group there lies block 0 of each row,
// then block 1 of each row, and so on, each with its bytes as in kFlat; scales (absmax or absmax_codes) lie
// in the same order, one a block. nested_absmax stays where kFlat has it: entry b / 256 is that of block
// b = row * K / block + block of the row. Every array has the size it has in kFlat, and a group of rows has
// the same bytes of it. Tables of the host read both orders and give the same bits; cuda reads kFlat.
enum class WeightOrder : uint8_t { kFlat = 0, kTiles = 1 };
constexpr int64_t kTileHeight = 16;
constexpr int64_t kTileBlock = 64;

struct WeightView {
  QuantType type = QuantType::kNF4;
  WeightOrder order = WeightOrder::kFlat;
  int64_t n = 0;                          // outputs (rows)
  int64_t k = 0;                          // inputs
  const void* data = nullptr;             // codes; or the bf16 / f32 values themselves
  int64_t block = 64;                     // consecutive flat elements per absmax; the last may be short
  const float* absmax = nullptr;          // [blocks]; null when double-quantized
  // [blocks]: absmax = f32(nested_map[code] * nested_absmax[b / 256]) + offset, two fp32 roundings; b counts
  // blocks of the flat order.
  const uint8_t* absmax_codes = nullptr;
  const float* nested_absmax = nullptr;   // [ceil(blocks / 256)]
  const float* nested_map = nullptr;      // [256]
  float offset = 0;
  const float* code_book = nullptr;       // [16] (NF4, FP4, INT4) or [256] (INT8)
  // act [N, K], what decode_weight makes of all rows; null = none. A table may read it instead of decoding
  // again: the results are the same bits.
  const void* decoded = nullptr;
};

// A frozen array in its stored type (norm weights, embeddings, head, biases); `cpu` reads bf16 and f32.
struct ParamView {
  const void* data = nullptr;
  DType type = DType::kBF16;
};

// Dropout on the adapter branch: element (row, column) of this module's input is kept when
// CounterKeep(key, row * K + column, p), and scaled by 1 / (1 - p). kernels/counter.h is the definition;
// no state, so recomputation sees the same mask.
struct DropoutKey {
  uint64_t seed = 0;
  uint64_t stream = 0;   // made of step, micro-batch and module by the engine
  float p = 0;           // 0 = no dropout
  // Of asynchronous backends, in their memory: bits of the stream that are known only when the op runs,
  // joined to `stream` by "or". Null = none.
  const uint64_t* late_stream = nullptr;
};

// y = x W^T + bias + scale * u B^T,   u = dropout(x) A^T.
struct LoraArgs {
  int64_t r = 0;
  float scale = 0;             // alpha / r, or alpha / sqrt(r)
  const void* a = nullptr;     // act [r, K], compute copy
  const void* b = nullptr;     // act [N, r], compute copy
  void* u = nullptr;           // act [M, r]; written by forward, read by backward
  void* da = nullptr;          // real [r, K], added to; backward only
  void* db = nullptr;          // real [N, r], added to; backward only
  DropoutKey dropout;
};

struct LinearArgs {
  int64_t m = 0;
  WeightView w;
  ParamView bias;              // [N]; data null = none
  const LoraArgs* lora = nullptr;
};

// Layers that share their input: q, k and v; gate and up. All have the same m and k, and those that have an
// adapter the same r.
constexpr int kMostGrouped = 3;
struct LinearGroup {
  int count = 0;
  LinearArgs linear[kMostGrouped];
  void* y[kMostGrouped] = {};  // act [M, N] of each; going back dy, only read
  // 0: every output, or its gradient, is an array of its own. Otherwise they are columns of one array with
  // rows of `stride` elements, side by side from its first column on, and fill it.
  int64_t stride = 0;
};

// Decoding ahead. What a product reads is decoded beside the product before it, into one of two tiles in the
// backend's memory, which the linear ops then use in place of their workspace. It changes no bit. The caller
// sets `tile` once and says before each linear op which weights the next one begins with.
struct DecodeAhead {
  void* tile[2] = {};
  int64_t tile_bytes = 0;          // of each; LinearPanelBytes of every op (kernels/cuda/workspace.h)
  WeightView next[kMostGrouped];
  int next_count = 0;              // 0 = none
  bool next_backward = false;
  // The backend's: a queue beside the compute lane, an event of each; null where there is one queue only.
  void* stream = nullptr;
  void* compute_event = nullptr;
  void* ahead_event = nullptr;
  // The ops': the tile to be filled next, and what is on its way there.
  int turn = 0;
  struct Panel {
    const void* data = nullptr;    // of the first weight; null = nothing is on its way
    bool backward = false;
    int64_t first = 0;
    int64_t count = 0;
    bool operator==(const Panel&) const = default;
  } pending;
};

// One of several linears over the same frozen weight, each with rows and an adapter of its own: of jobs that
// share a base.
struct LinearPart {
  void* out = nullptr;         // y; in the backward dx, null = not wanted
  bool accumulate = false;     // of the backward
  const void* in = nullptr;    // x; in the backward dy
  const void* x = nullptr;     // of the backward
  LinearArgs args;             // w is the same in all parts
};

// Causal attention over documents: document s is rows starts[s] .. starts[s+1]-1 and sees only itself.
struct AttentionArgs {
  int64_t m = 0;
  int64_t heads = 0;           // H
  int64_t kv_heads = 0;        // G; H is a multiple of G
  int64_t head_dim = 0;        // D
  const int32_t* starts = nullptr;  // [documents + 1], starts[0] = 0, last = m
  int64_t documents = 0;
  float scale = 0;             // on q k^T, usually 1 / sqrt(D)
  int64_t window = 0;          // a token sees itself and window - 1 before it; 0 = all before it
  float soft_cap = 0;          // scores s become soft_cap * tanh(s / soft_cap) before softmax; 0 = off
};

enum class Activation : uint8_t { kSilu = 0, kGeluTanh = 1 };

// Rows of `width` elements. gate, up and their gradients have `stride` from row to row (0 = width), so that
// they may be halves of one array; everything else is dense.
struct GatedArgs {
  int64_t rows = 1;
  int64_t width = 0;
  int64_t stride = 0;
  Activation activation = Activation::kSilu;
};

// Columns of one array `all`, act [rows, sum of the widths], and an array for each part of them, act
// [rows, width]. Three at most; a width of 0: no such part.
constexpr int kMostColumns = 3;
struct ColumnsArgs {
  int64_t rows = 0;
  int64_t width[kMostColumns] = {};
  void* part[kMostColumns] = {};  // joined they are only read

  int64_t AllWidth() const { return width[0] + width[1] + width[2]; }
};

struct AdamWArgs {
  int64_t count = 0;
  double learning_rate = 0;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double epsilon = 1e-8;
  double weight_decay = 0;
  int64_t step = 1;            // from 1; for the bias correction
  double gradient_scale = 1;   // clip factor, applied to the gradient on the fly
};

// AdamW with 8-bit moments, as bitsandbytes' block-wise optimizer has them: one code per element and
// one fp32 absmax per kAdam8Block elements; m through the signed dynamic map, v through the unsigned one.
constexpr int64_t kAdam8Block = 256;
struct Adam8State {
  uint8_t* m = nullptr;             // [count]
  uint8_t* v = nullptr;             // [count]
  float* m_absmax = nullptr;        // [ceil(count / kAdam8Block)]
  float* v_absmax = nullptr;
  const float* signed_map = nullptr;    // [256], ascending
  const float* unsigned_map = nullptr;  // [256], ascending
};

struct KernelTable {
  const char* name;            // "ref", "ref64", "cpu", "cuda"
  const char* body;            // e.g. "scalar", "avx512_bf16", "avx512", "avx2": part of the numerics_id
  DType act;
  DType real;

  // Rows n0 .. n0+rows-1 of w, decoded: out act [rows, K].
  void (*decode_weight)(Context*, void* out, const WeightView& w, int64_t n0, int64_t rows);

  // y act [M, N] = linear of x act [M, K]; see LoraArgs.
  void (*linear_forward)(Context*, void* y, const void* x, const LinearArgs& args);
  // dx act [M, K] = dy W + dropout'(scale * dy B) A;  da += (scale * dy B)^T dropout(x);
  // db += scale * dy^T u.  dx null: not wanted. accumulate: dx += instead of =.
  // x is read only for da and may be null without LoRA.
  void (*linear_backward)(Context*, void* dx, bool accumulate, const void* dy, const void* x,
                          const LinearArgs& args);

  // The same for a group. dx is the sum over it, rounded once; null: not wanted. A table that has neither is
  // given the layers one by one.
  void (*linear_group_forward)(Context*, const void* x, const LinearGroup& group);
  void (*linear_group_backward)(Context*, void* dx, const void* x, const LinearGroup& group);

  // linear_forward and linear_backward of every part, with the same bits; the arrays of two parts do not
  // overlap. A table may decode the weight once for all of them. Null: this one does not offer it.
  void (*linear_forward_parts)(Context*, const LinearPart* parts, int64_t count);
  void (*linear_backward_parts)(Context*, const LinearPart* parts, int64_t count);

  // y = x * rstd * (w + unit_offset); rstd real [M] = 1 / sqrt(mean(x^2) + eps). M rows of `dim`.
  // y may be x.
  void (*rmsnorm_forward)(Context*, void* y, void* rstd, const void* x, ParamView w, int64_t m,
                          int64_t dim, float eps, float unit_offset);
  // dx (+)= rstd * (g - xhat * mean(g * xhat)), g = dy * (w + unit_offset), xhat = x * rstd.
  // dx may be dy when not accumulating.
  void (*rmsnorm_backward)(Context*, void* dx, bool accumulate, const void* dy, const void* x,
                           ParamView w, const void* rstd, int64_t m, int64_t dim, float unit_offset);

  // out = a + b, `count` elements; out may be a or b.
  void (*add)(Context*, void* out, const void* a, const void* b, int64_t count);

  // Rotates x act [M, heads, D] in place: of the first R = rotary_dim elements of a head the pairs
  // (i, i + R/2), the others stay; R is even and at most D. cos_sin f32 [places, R/2, 2]; positions i32 [M]
  // say which place of it a row takes. inverse: by the negative angle (the backward).
  void (*rope)(Context*, void* x, const int32_t* positions, const float* cos_sin, int64_t m, int64_t heads,
               int64_t head_dim, int64_t rotary_dim, bool inverse);

  // out act [M, H, D]; lse real [M, H] = log of the sum of exp(scores). q [M, H, D]; k, v [M, G, D].
  void (*attention_forward)(Context*, void* out, void* lse, const void* q, const void* k,
                            const void* v, const AttentionArgs& args);
  // dq [M, H, D], dk, dv [M, G, D]. None may alias an input.
  void (*attention_backward)(Context*, void* dq, void* dk, void* dv, const void* dout,
                             const void* out, const void* lse, const void* q, const void* k,
                             const void* v, const AttentionArgs& args);
  // One new token per call, for generation: out act [H, D]; q [H, D]; k, v caches act [length, G, D],
  // the new token's own already inside. args.m and documents are ignored.
  void (*attention_decode)(Context*, void* out, const void* q, const void* k_cache,
                           const void* v_cache, int64_t length, const AttentionArgs& args);

  // out = activation(gate) * up; out may be gate or up where these are dense.
  void (*gated_forward)(Context*, void* out, const void* gate, const void* up, const GatedArgs& args);
  // dgate, dup from dout, gate and up; dgate may be gate, dup may be up, or dout where it is dense.
  void (*gated_backward)(Context*, void* dgate, void* dup, const void* dout, const void* gate,
                         const void* up, const GatedArgs& args);

  // Copies: all's columns into the parts, and the parts into all. Nothing overlaps.
  void (*split_columns)(Context*, const void* all, const ColumnsArgs& args);
  void (*join_columns)(Context*, void* all, const ColumnsArgs& args);

  // out act [M, dim] = scale * table[ids].
  void (*embedding_forward)(Context*, void* out, const int32_t* ids, ParamView table, int64_t m,
                            int64_t dim, float scale);

  // Loss and its gradient in one sweep over chunks of tokens; tokens x vocabulary never exists in
  // fp32. labels i32 [M], -1 = none: only rows with a label are touched by the products.
  // *loss_sum += sum over labelled rows of -log softmax(h head^T)[label], in row order, in double.
  // dh act [M, dim] = gradient_scale * d(sum)/dh, rows without label zero; null = loss only.
  // soft_cap: logits l become soft_cap * tanh(l / soft_cap) before softmax; 0 = off.
  void (*cross_entropy)(Context*, double* loss_sum, void* dh, const void* h, ParamView head,
                        const int32_t* labels, int64_t m, int64_t dim, int64_t vocab,
                        double gradient_scale, float soft_cap);
  // out f32 [M, V] = h head^T (also in ref64), capped in the same way.
  void (*logits)(Context*, float* out, const void* h, ParamView head, int64_t m, int64_t dim,
                 int64_t vocab, float soft_cap);

  // Decoupled weight decay; p, m, v real [count] updated from g real [count].
  // m = b1 m + (1-b1) g; v = b2 v + (1-b2) g^2; p -= lr wd p;
  // p -= lr/(1-b1^t) * m / (sqrt(v / (1-b2^t)) + eps).
  void (*adamw)(Context*, void* p, const void* g, void* m, void* v, const AdamWArgs& args);
  // The same update on dequantized moments, which are then quantized again: per block the new absmax,
  // then the nearest code of value / absmax (the lower one on a tie). real is float.
  void (*adamw8)(Context*, void* p, const void* g, const Adam8State& state, const AdamWArgs& args);
  // *out = sum of squares of real x in a fixed order, in double; NaN or Inf inside comes out as such.
  void (*sum_squares)(Context*, double* out, const void* x, int64_t count);
  // out act = in real.
  void (*to_act)(Context*, void* out, const void* in, int64_t count);
};

}  // namespace nibble::kernels
