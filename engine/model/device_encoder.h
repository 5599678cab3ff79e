// Quantization of a base's tensors on a device, a chunk at a time: the bits of kernels/nf4.h.
//
// Holds device memory from Make to its end: a chunk of values with its codes, and the scales of the largest
// tensor. That is before a base or a job has a region there. One thread drives it; the backend outlives it.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "kernels/backend.h"

namespace nibble::engine {

class DeviceEncoder {
 public:
  // For chunks of at most `most_values` values and tensors of at most `most_blocks` blocks. Null when the
  // backend is null, cannot encode, or has no memory left for it: then the host encodes.
  static std::unique_ptr<DeviceEncoder> Make(kernels::Backend* backend, kernels::QuantType type,
                                             int64_t block, int64_t most_values, int64_t most_blocks);
  ~DeviceEncoder();

  // As kernels::QuantizeTensor and kernels::QuantizeAbsmax, from and to host memory. DEVICE_FAULT when the
  // device has failed.
  absl::Status Quantize(const float* values, int64_t count, uint8_t* codes, float* absmax);
  absl::Status QuantizeAbsmax(const float* absmax, int64_t blocks, uint8_t* codes, float* nested_absmax,
                              float* offset);

 private:
  DeviceEncoder(kernels::Backend& backend, kernels::QuantType type, int64_t block)
      : backend_(backend), type_(type), block_(block) {}
  absl::Status Finish();

  kernels::Backend& backend_;
  const kernels::QuantType type_;
  const int64_t block_;
  std::byte* memory_ = nullptr;
  // Inside it.
  float *values_ = nullptr, *absmax_ = nullptr, *nested_absmax_ = nullptr, *tables_ = nullptr;
  uint8_t *codes_ = nullptr, *absmax_codes_ = nullptr;
};

}  // namespace nibble::engine
