// One body's table.
#pragma once

#include "kernels/cpu/body/adam8.h"
#include "kernels/cpu/body/attention_backward.h"
#include "kernels/cpu/body/attention_decode.h"
#include "kernels/cpu/body/attention_forward.h"
#include "kernels/cpu/body/elementwise.h"
#include "kernels/cpu/body/linear.h"
#include "kernels/cpu/body/loss.h"
#include "kernels/kernel_table.h"

namespace nibble::kernels::cpu::NIBBLE_BODY {

static KernelTable MakeTable(const char* body) {
  KernelTable t{};
  t.name = "cpu";
  t.body = body;
  t.act = DType::kBF16;
  t.real = DType::kF32;
  t.decode_weight = DecodeWeight;
  t.linear_forward = LinearForward;
  t.linear_backward = LinearBackward;
  t.linear_forward_parts = LinearForwardParts;
  t.linear_backward_parts = LinearBackwardParts;
  t.rmsnorm_forward = RmsNormForward;
  t.rmsnorm_backward = RmsNormBackward;
  t.add = AddArrays;
  t.rope = Rope;
  t.attention_forward = AttentionForward;
  t.attention_backward = AttentionBackward;
  t.attention_decode = AttentionDecode;
  t.gated_forward = GatedForward;
  t.gated_backward = GatedBackward;
  t.split_columns = SplitColumns;
  t.join_columns = JoinColumns;
  t.embedding_forward = EmbeddingForward;
  t.cross_entropy = CrossEntropy;
  t.logits = Logits;
  t.adamw = AdamW;
  t.adamw8 = AdamW8;
  t.sum_squares = SumSquares;
  t.to_act = ToAct;
  return t;
}

}  // namespace nibble::kernels::cpu::NIBBLE_BODY
