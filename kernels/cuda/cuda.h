// The cuda kernel tables.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "kernels/kernel_table.h"

namespace nibble::kernels {

// Which kernels compute attention_forward and attention_backward: those of every device, or those made of
// Hopper's warpgroup products.
enum class CudaAttention { kEverywhere, kWgmma };

// Whether this build has the latter, and a device of that capability runs them.
bool HasWgmma(int capability);

// What the environment's NIBBLE_CUDA_ATTENTION asks for: "wgmma", or nothing. Another word, or what is not
// `there`, is an error: null, and `why` says it in a sentence.
inline const CudaAttention* ChosenAttention(bool there, std::string* why) {
  static constexpr CudaAttention kChoices[] = {CudaAttention::kEverywhere, CudaAttention::kWgmma};
  const char* wanted = std::getenv("NIBBLE_CUDA_ATTENTION");
  if (wanted == nullptr || *wanted == 0) return &kChoices[0];
  if (std::string_view(wanted) == "wgmma" && there) return &kChoices[1];
  *why = std::string("NIBBLE_CUDA_ATTENTION=") + wanted +
         (there ? " is none; it can be wgmma" : " needs compute capability 9.0, and a build for sm_90a");
  return nullptr;
}

// Whose the large products are. kOwn: ours, though the vendor's library is there. kTold: the library's, and
// for every shape a line on stderr says what it answered.
enum class CudaProducts { kLibrary, kOwn, kTold };

// What the environment's NIBBLE_CUDA_PRODUCTS asks for: "own", "tell", or nothing. Another word is an error,
// as above.
inline const CudaProducts* ChosenProducts(std::string* why) {
  static constexpr CudaProducts kChoices[] = {CudaProducts::kLibrary, CudaProducts::kOwn,
                                              CudaProducts::kTold};
  const char* wanted = std::getenv("NIBBLE_CUDA_PRODUCTS");
  if (wanted == nullptr || *wanted == 0) return &kChoices[0];
  if (std::string_view(wanted) == "own") return &kChoices[1];
  if (std::string_view(wanted) == "tell") return &kChoices[2];
  *why = std::string("NIBBLE_CUDA_PRODUCTS=") + wanted + " is none; it can be own or tell";
  return nullptr;
}

// For a device of compute capability `capability` (major * 10 + minor), 75 or more. Activations are bf16, or
// fp16 when asked for and below 80, where there is no other choice. Its body says which code runs and in
// which type ("sm_90", "sm_75", "sm_90 wgmma fp16"): part of the numerics id. From nibble_cuda_kernels.
const KernelTable& CudaTable(int capability, bool fp16, CudaAttention attention = CudaAttention::kEverywhere);

// The vendor's library of products (libraries.h), behind ctx->libraries from then on; ctx has its stream,
// and its device is the current one. Multiplies a little in `act`, so that the library's code is loaded.
// Returns its version, or 0: `why` then says in a sentence what is missing; everything works without, and
// slower.
int64_t OpenCudaLibraries(Context* ctx, DType act, CudaProducts products, std::string* why);
void CloseCudaLibraries(Context* ctx);

// The same kernels compiled for the host under kernels/cuda/emulate.h, named "cuda-emulated". From
// nibble_cuda_kernels_emulated.
const KernelTable& EmulatedCudaKernels(bool fp16, CudaAttention attention = CudaAttention::kEverywhere);

}  // namespace nibble::kernels
