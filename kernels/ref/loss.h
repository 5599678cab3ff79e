// Reference cross-entropy and logits.
#pragma once

#include <algorithm>

#include "kernels/ref/common.h"

namespace nibble::kernels::ref {

template <typename Act, typename Real>
struct Loss {
  static void CrossEntropy(Context* ctx, double* loss_sum, void* dh, const void* h, ParamView head,
                           const int32_t* labels, int64_t m, int64_t dim, int64_t vocab,
                           double gradient_scale, float soft_cap) {
    KERNEL_CHECK(m >= 0 && dim > 0 && vocab > 0 && soft_cap >= 0);
    KERNEL_CHECK(m == 0 || vocab * static_cast<int64_t>(sizeof(Real)) <= ctx->workspace_bytes);
    auto* row_logits = static_cast<Real*>(ctx->workspace);
    if (dh != nullptr)
      for (int64_t i = 0; i < m * dim; ++i) Put(static_cast<Act*>(dh), i, 0);
    for (int64_t row = 0; row < m; ++row) {
      if (labels[row] < 0) continue;
      KERNEL_CHECK(labels[row] < vocab);
      const Act* hidden = static_cast<const Act*>(h) + row * dim;
      LogitRow(ctx, row_logits, hidden, head, dim, vocab, soft_cap);
      const Real largest = *std::max_element(row_logits, row_logits + vocab);
      Real total = 0;
      for (int64_t i = 0; i < vocab; ++i) total += std::exp(row_logits[i] - largest);
      const Real log_sum = largest + std::log(total);
      *loss_sum += static_cast<double>(log_sum - row_logits[labels[row]]);
      if (dh == nullptr) continue;
      for (int64_t i = 0; i < vocab; ++i) {
        const Real share = soft_cap > 0 ? row_logits[i] / static_cast<Real>(soft_cap) : 0;  // tanh
        row_logits[i] = (std::exp(row_logits[i] - log_sum) - (i == labels[row] ? 1 : 0)) *
                        (1 - share * share) * static_cast<Real>(gradient_scale);
      }
      RunPieces(ctx->pool, dim, [&](int64_t d, int) {
        Real sum = 0;
        for (int64_t i = 0; i < vocab; ++i) sum += row_logits[i] * GetParam<Real>(head, i * dim + d);
        Put(static_cast<Act*>(dh), row * dim + d, sum);
      });
    }
  }

  static void Logits(Context* ctx, float* out, const void* h, ParamView head, int64_t m, int64_t dim,
                     int64_t vocab, float soft_cap) {
    KERNEL_CHECK(soft_cap >= 0);
    for (int64_t row = 0; row < m; ++row)
      LogitRow(ctx, out + row * vocab, static_cast<const Act*>(h) + row * dim, head, dim, vocab, soft_cap);
  }

 private:
  template <typename Out>
  static void LogitRow(Context* ctx, Out* out, const Act* hidden, const ParamView& head, int64_t dim,
                       int64_t vocab, float soft_cap) {
    const auto cap = static_cast<Real>(soft_cap);
    RunPieces(ctx->pool, vocab, [&](int64_t i, int) {
      Real sum = 0;
      for (int64_t d = 0; d < dim; ++d) sum += Get<Real>(hidden, d) * GetParam<Real>(head, i * dim + d);
      out[i] = static_cast<Out>(cap > 0 ? cap * std::tanh(sum / cap) : sum);
    });
  }
};

}  // namespace nibble::kernels::ref
