// The ops of the cuda tables, one template each on the activation type; kernel_table.h says what they
// compute. Each is instantiated for BF16 and FP16 in the .cu file named above it. real is float.
#pragma once

#include "kernels/cuda/device.h"

namespace nibble::kernels::NIBBLE_CUDA {

// decode.cu
template <typename Act>
void DecodeWeight(Context* ctx, void* out, const WeightView& w, int64_t n0, int64_t rows);

// elementwise.cu
template <typename Act>
void Add(Context* ctx, void* out, const void* a, const void* b, int64_t count);
template <typename Act>
void GatedForward(Context* ctx, void* out, const void* gate, const void* up, const GatedArgs& args);
template <typename Act>
void GatedBackward(Context* ctx, void* dgate, void* dup, const void* dout, const void* gate, const void* up,
                   const GatedArgs& args);
template <typename Act>
void SplitColumns(Context* ctx, const void* all, const ColumnsArgs& args);
template <typename Act>
void JoinColumns(Context* ctx, void* all, const ColumnsArgs& args);
template <typename Act>
void EmbeddingForward(Context* ctx, void* out, const int32_t* ids, ParamView table, int64_t m, int64_t dim,
                      float scale);
template <typename Act>
void Rope(Context* ctx, void* x, const int32_t* positions, const float* cos_sin, int64_t m, int64_t heads,
          int64_t head_dim, int64_t rotary_dim, bool inverse);
template <typename Act>
void ToAct(Context* ctx, void* out, const void* in, int64_t count);

// norm.cu; rows of up to 16384 elements
template <typename Act>
void RmsNormForward(Context* ctx, void* y, void* rstd, const void* x, ParamView w, int64_t m, int64_t dim,
                    float eps, float unit_offset);
template <typename Act>
void RmsNormBackward(Context* ctx, void* dx, bool accumulate, const void* dy, const void* x, ParamView w,
                     const void* rstd, int64_t m, int64_t dim, float unit_offset);

// optimizer.cu
void AdamW(Context* ctx, void* p, const void* g, void* m, void* v, const AdamWArgs& args);
void AdamW8(Context* ctx, void* p, const void* g, const Adam8State& state, const AdamWArgs& args);
void SumSquares(Context* ctx, double* out, const void* x, int64_t count);

// linear.cu
template <typename Act>
void LinearForward(Context* ctx, void* y, const void* x, const LinearArgs& args);
template <typename Act>
void LinearBackward(Context* ctx, void* dx, bool accumulate, const void* dy, const void* x,
                    const LinearArgs& args);
template <typename Act>
void LinearGroupForward(Context* ctx, const void* x, const LinearGroup& group);
template <typename Act>
void LinearGroupBackward(Context* ctx, void* dx, const void* x, const LinearGroup& group);

// attention_forward.cu, attention_backward.cu, attention_decode.cu; kHopper: by warpgroup products (wgmma.h)
// for heads of at most 128 elements, on 9.0 alone
template <typename Act, bool kHopper>
void AttentionForward(Context* ctx, void* out, void* lse, const void* q, const void* k, const void* v,
                      const AttentionArgs& args);
template <typename Act, bool kHopper>
void AttentionBackward(Context* ctx, void* dq, void* dk, void* dv, const void* dout, const void* out,
                       const void* lse, const void* q, const void* k, const void* v,
                       const AttentionArgs& args);
template <typename Act>
void AttentionDecode(Context* ctx, void* out, const void* q, const void* k_cache, const void* v_cache,
                     int64_t length, const AttentionArgs& args);

// loss.cu
template <typename Act>
void CrossEntropy(Context* ctx, double* loss_sum, void* dh, const void* h, ParamView head,
                  const int32_t* labels, int64_t m, int64_t dim, int64_t vocab, double gradient_scale,
                  float soft_cap);
template <typename Act>
void Logits(Context* ctx, float* out, const void* h, ParamView head, int64_t m, int64_t dim, int64_t vocab,
            float soft_cap);

}  // namespace nibble::kernels::NIBBLE_CUDA
