// The ops of a KernelTable by name, for code that does the same with each of them.
#pragma once

#define NIBBLE_EACH_OP(DO)                                                                        \
  DO(decode_weight) DO(linear_forward) DO(linear_backward) DO(linear_group_forward)         \
  DO(linear_group_backward) DO(rmsnorm_forward) DO(rmsnorm_backward)                             \
  DO(add) DO(rope) DO(attention_forward) DO(attention_backward) DO(attention_decode)              \
  DO(gated_forward) DO(gated_backward) DO(split_columns) DO(join_columns)                         \
  DO(embedding_forward) DO(cross_entropy) DO(logits)                                              \
  DO(adamw) DO(adamw8) DO(sum_squares) DO(to_act)
