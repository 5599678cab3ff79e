// Puts the ops of one world, nvcc's or the emulated one, into tables. An op that is not named here is null.
#include <climits>
#include <iterator>

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/ops.h"

namespace nibble::kernels {
namespace NIBBLE_CUDA {
namespace {

template <typename Act, bool kHopper = false>
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
  t.split_columns = SplitColumns<Act>;
  t.join_columns = JoinColumns<Act>;
  t.embedding_forward = EmbeddingForward<Act>;
  t.adamw = AdamW;
  t.adamw8 = AdamW8;
  t.sum_squares = SumSquares;
  t.to_act = ToAct<Act>;
  t.linear_forward = LinearForward<Act>;
  t.linear_backward = LinearBackward<Act>;
  t.linear_group_forward = LinearGroupForward<Act>;
  t.linear_group_backward = LinearGroupBackward<Act>;
  t.attention_forward = AttentionForward<Act, kHopper>;
  t.attention_backward = AttentionBackward<Act, kHopper>;
  t.attention_decode = AttentionDecode<Act>;
  t.cross_entropy = CrossEntropy<Act>;
  t.logits = Logits<Act>;
  return t;
}

}  // namespace
}  // namespace NIBBLE_CUDA

#if defined(__CUDACC__)

namespace {

// From 8.0 on: which code runs, and its name in bf16 and in fp16.
struct Body {
  int below;  // capability
  const char* name[2];
};
constexpr Body kBodies[] = {{86, {"sm_80", "sm_80 fp16"}},
                            {89, {"sm_86", "sm_86 fp16"}},
                            {90, {"sm_89", "sm_89 fp16"}},
                            {91, {"sm_90", "sm_90 fp16"}},
                            {INT_MAX, {"ptx", "ptx fp16"}}};

template <typename Act, int kWhich>
constexpr KernelTable kTable =
    cuda::MakeTable<Act>("cuda", kBodies[kWhich].name[cuda::ActType<Act>::kType == DType::kF16]);

template <int kWhich = 0>
const KernelTable& TableOf(int capability, bool fp16) {
  if constexpr (kWhich + 1 < static_cast<int>(std::size(kBodies)))
    if (capability >= kBodies[kWhich].below) return TableOf<kWhich + 1>(capability, fp16);
  return fp16 ? kTable<FP16, kWhich> : kTable<BF16, kWhich>;
}

}  // namespace

bool HasWgmma([[maybe_unused]] int capability) {
#if defined(NIBBLE_CUDA_WGMMA)
  return capability == 90;
#else
  return false;
#endif
}

const KernelTable& CudaTable(int capability, bool fp16, CudaAttention attention) {
  static constexpr KernelTable bf16_hopper = cuda::MakeTable<BF16, true>("cuda", "sm_90 wgmma");
  static constexpr KernelTable fp16_hopper = cuda::MakeTable<FP16, true>("cuda", "sm_90 wgmma fp16");
  if (attention == CudaAttention::kWgmma) return fp16 ? fp16_hopper : bf16_hopper;
  static constexpr KernelTable turing = cuda::MakeTable<FP16>("cuda", "sm_75");
  return capability < 80 ? turing : TableOf(capability, fp16);
}

#else

const KernelTable& EmulatedCudaKernels(bool fp16, CudaAttention attention) {
  using cuda_emulated::MakeTable;
  static constexpr KernelTable bf16_table = MakeTable<BF16>("cuda-emulated", "sm_90");
  static constexpr KernelTable fp16_table = MakeTable<FP16>("cuda-emulated", "sm_75");
  static constexpr KernelTable bf16_hopper = MakeTable<BF16, true>("cuda-emulated", "sm_90 wgmma");
  static constexpr KernelTable fp16_hopper = MakeTable<FP16, true>("cuda-emulated", "sm_90 wgmma fp16");
  if (attention == CudaAttention::kWgmma) return fp16 ? fp16_hopper : bf16_hopper;
  return fp16 ? fp16_table : bf16_table;
}

#endif

}  // namespace nibble::kernels
