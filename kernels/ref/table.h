// The reference ops as a table.
#pragma once

#include <type_traits>

#include "kernels/ref/adam8.h"
#include "kernels/ref/attention.h"
#include "kernels/ref/elementwise.h"
#include "kernels/ref/linear.h"
#include "kernels/ref/loss.h"

namespace nibble::kernels::ref {

template <typename Act, typename Real>
constexpr KernelTable MakeTable(const char* name, const char* body, DType act, DType real) {
  KernelTable t{};
  t.name = name;
  t.body = body;
  t.act = act;
  t.real = real;
  t.decode_weight = Linear<Act, Real>::DecodeWeight;
  t.linear_forward = Linear<Act, Real>::Forward;
  t.linear_backward = Linear<Act, Real>::Backward;
  t.linear_forward_parts = Linear<Act, Real>::ForwardParts;
  t.linear_backward_parts = Linear<Act, Real>::BackwardParts;
  if constexpr (std::is_same_v<Act, Real>) {
    t.linear_group_forward = Linear<Act, Real>::GroupForward;
    t.linear_group_backward = Linear<Act, Real>::GroupBackward;
  }
  t.rmsnorm_forward = Elementwise<Act, Real>::RmsNormForward;
  t.rmsnorm_backward = Elementwise<Act, Real>::RmsNormBackward;
  t.add = Elementwise<Act, Real>::Add;
  t.rope = Elementwise<Act, Real>::Rope;
  t.attention_forward = Attention<Act, Real>::Forward;
  t.attention_backward = Attention<Act, Real>::Backward;
  t.attention_decode = Attention<Act, Real>::Decode;
  t.gated_forward = Elementwise<Act, Real>::GatedForward;
  t.gated_backward = Elementwise<Act, Real>::GatedBackward;
  t.split_columns = Elementwise<Act, Real>::SplitColumns;
  t.join_columns = Elementwise<Act, Real>::JoinColumns;
  t.embedding_forward = Elementwise<Act, Real>::EmbeddingForward;
  t.cross_entropy = Loss<Act, Real>::CrossEntropy;
  t.logits = Loss<Act, Real>::Logits;
  t.adamw = Elementwise<Act, Real>::AdamW;
  t.adamw8 = Adam8<Real>::Update;
  t.sum_squares = Elementwise<Act, Real>::SumSquares;
  t.to_act = Elementwise<Act, Real>::ToAct;
  return t;
}

}  // namespace nibble::kernels::ref
