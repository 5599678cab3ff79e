// How much of Context::workspace each op may use: pure functions of shapes, the same for every cpu body
// and for ref (whose needs are smaller), so that a plan can be made where no kernel is. Every op checks
// that ctx->workspace_bytes is at least its own figure here. Start the buffer at a multiple of 64.
//
// With T threads, R64 = round up to 64, R32 = round up to 32:
//   linear      T (1 MiB + 256 m) + 32 m R32(r)           (forward and backward, any k and n)
//   in parts    T (1 MiB + 256 M) + 32 sum of m R32(r)     (LinearPart; M = sum of m)
//   attention   T (4608 R32(D) + 57344)                   (forward)
//               T (R32(D) (a L + 5120) + 262144) + b       (backward; L = longest document; H, G heads of
//               queries and of keys; c = AttentionBackwardCuts(H, G); a = 20 and b = 0 with c = 1, else
//               a = 12 and b = 8 m G c R32(D))
//   loss        c (b R64(V) + 8 R64(dim) + 64) + T (1 MiB + 256 c)
//               c = tokens per chunk = CrossEntropyChunk(m, V), b = max(4, act bytes)
//   logits      T (1 MiB + 256 m)
// The 1 MiB of a thread is a panel of decoded weights (half a MiB), the rows of the other operand it is
// multiplied with, and tiles; 256 m is 64 columns of float sums. Elementwise ops need nothing.
#pragma once

#include <cstdint>

namespace nibble::kernels {

struct WorkspaceShape {
  int64_t m = 0;                // tokens of a micro-batch
  int64_t k = 0;                // of the linear; or the hidden size for loss and logits
  int64_t n = 0;
  int64_t r = 0;                // largest rank; 0 without adapters
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t vocab = 0;
  int64_t longest_document = 0;  // m is always enough
  int threads = 1;
  int act_bytes = 2;
};

constexpr int64_t kThreadBytes = int64_t{1} << 20;
constexpr int64_t kAttentionBlock = 192;  // keys, and in the backward queries, of one block
constexpr int64_t kAttentionRows = 384;   // queries of all heads in one piece of the forward

constexpr int64_t RoundUp(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

constexpr int64_t LinearWorkspaceBytes(const WorkspaceShape& s) {
  return s.threads * (kThreadBytes + 256 * s.m) + 32 * s.m * RoundUp(s.r, 32);
}

// Of several parts, all with the first one's number of threads.
constexpr int64_t LinearPartsWorkspaceBytes(const WorkspaceShape* parts, int64_t count) {
  int64_t bytes = LinearWorkspaceBytes(parts[0]);
  for (int64_t i = 1; i < count; ++i)
    bytes += LinearWorkspaceBytes(parts[i]) - parts[i].threads * kThreadBytes;
  return bytes;
}

constexpr int64_t AttentionForwardWorkspaceBytes(const WorkspaceShape& s) {
  return s.threads * (4608 * RoundUp(s.head_dim, 32) + 57344);
}

// Into how many the query heads of one key/value head are cut going back, so that there are some sixteen
// pieces of a document for the threads. Sums of dk and dv of each cut wait for the others'.
constexpr int64_t AttentionBackwardCuts(int64_t heads, int64_t kv_heads) {
  if (kv_heads <= 0) return 1;
  const int64_t group = heads / kv_heads, wanted = (16 + kv_heads - 1) / kv_heads;
  return group < 1 ? 1 : group < wanted ? group : wanted;
}
// Of these sums; a piece's own are with its thread.
constexpr int64_t AttentionCutBytes(const WorkspaceShape& s) {
  const int64_t cuts = AttentionBackwardCuts(s.heads, s.kv_heads);
  return cuts == 1 ? 0 : 8 * s.m * s.kv_heads * cuts * RoundUp(s.head_dim, 32);
}

constexpr int64_t AttentionBackwardWorkspaceBytes(const WorkspaceShape& s) {
  const int64_t floats = AttentionBackwardCuts(s.heads, s.kv_heads) == 1 ? 5 : 3;
  return s.threads * (RoundUp(s.head_dim, 32) * (4 * floats * s.longest_document + 5120) + 262144) +
         AttentionCutBytes(s);
}

// Tokens whose logits exist at once: 32 MiB of float logits, but 96 to 1056 tokens.
constexpr int64_t CrossEntropyChunk(int64_t m, int64_t vocab) {
  const int64_t fit = (int64_t{32} << 20) / (4 * (vocab > 0 ? vocab : 1)) / 96 * 96;
  const int64_t chunk = fit < 96 ? 96 : fit > 1056 ? 1056 : fit;
  return m < chunk ? m : chunk;
}

constexpr int64_t CrossEntropyWorkspaceBytes(const WorkspaceShape& s) {
  const int64_t chunk = CrossEntropyChunk(s.m, s.vocab);
  const int64_t logit_bytes = s.act_bytes > 4 ? s.act_bytes : 4;
  return chunk * (logit_bytes * RoundUp(s.vocab, 64) + 8 * RoundUp(s.k, 64) + 64) +
         s.threads * (kThreadBytes + 256 * chunk);
}

constexpr int64_t LogitsWorkspaceBytes(const WorkspaceShape& s) {
  return s.threads * (kThreadBytes + 256 * s.m);
}

}  // namespace nibble::kernels
