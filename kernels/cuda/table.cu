// Puts the ops of one world, nvcc's or the emulated one, into tables. An op that is not written yet is null.
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/ops.h"

namespace nibble::kernels {
namespace NIBBLE_CUDA {
namespace {

template <typename Act>
constexpr KernelTable MakeTable(const char* name, const char* body) {
  KernelTable t{};
  t.name = name;
  t.body = body;
  t.act = ActType<Act>::kType;
  t.real = DType::kF32;
  t.decode_weight = DecodeWeight<Act>;
  t.rmsnorm_forward = RmsNormForward<Act>;
  t.rmsnorm_backward = RmsNormBackward<Act>;
  t.add = Add<Act>;
  t.rope = Rope<Act>;
  t.gated_forward = GatedForward<Act>;
  t.gated_backward = GatedBackward<Act>;
  t.embedding_forward = EmbeddingForward<Act>;
  t.adamw = AdamW;
  t.adamw8 = AdamW8;
  t.sum_squares = SumSquares;
  t.to_act = ToAct<Act>;
  t.linear_forward = LinearForward<Act>;
  t.linear_backward = LinearBackward<Act>;
  t.linear_group_forward = LinearGroupForward<Act>;
  t.linear_group_backward = LinearGroupBackward<Act>;
  t.attention_forward = AttentionForward<Act>;
  t.attention_backward = AttentionBackward<Act>;
  t.attention_decode = AttentionDecode<Act>;
  t.cross_entropy = CrossEntropy<Act>;
  t.logits = Logits<Act>;
  return t;
}

}  // namespace
}  // namespace NIBBLE_CUDA

#if defined(__CUDACC__)

const KernelTable& CudaTable(int capability, bool fp16) {
  using cuda::MakeTable;
  static constexpr KernelTable bf16_tables[] = {
      MakeTable<BF16>("cuda", "sm_80"), MakeTable<BF16>("cuda", "sm_86"), MakeTable<BF16>("cuda", "sm_89"),
      MakeTable<BF16>("cuda", "sm_90"), MakeTable<BF16>("cuda", "ptx")};
  static constexpr KernelTable fp16_tables[] = {
      MakeTable<FP16>("cuda", "sm_80 fp16"), MakeTable<FP16>("cuda", "sm_86 fp16"),
      MakeTable<FP16>("cuda", "sm_89 fp16"), MakeTable<FP16>("cuda", "sm_90 fp16"),
      MakeTable<FP16>("cuda", "ptx fp16")};
  static constexpr KernelTable turing = MakeTable<FP16>("cuda", "sm_75");
  if (capability < 80) return turing;
  const int which = capability < 86    ? 0
                    : capability < 89  ? 1
                    : capability < 90  ? 2
                    : capability == 90 ? 3
                                       : 4;
  return fp16 ? fp16_tables[which] : bf16_tables[which];
}

#else

const KernelTable& EmulatedCudaKernels(bool fp16) {
  using cuda_emulated::MakeTable;
  static constexpr KernelTable bf16_table = MakeTable<BF16>("cuda-emulated", "sm_90");
  static constexpr KernelTable fp16_table = MakeTable<FP16>("cuda-emulated", "sm_75");
  return fp16 ? fp16_table : bf16_table;
}

#endif

}  // namespace nibble::kernels
