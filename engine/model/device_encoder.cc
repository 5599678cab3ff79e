#include "engine/model/device_encoder.h"

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "kernels/nf4.h"

namespace nibble::engine {
namespace {

using kernels::Lane;

// The code book and the signed map, 256 floats each, then the offset.
constexpr int64_t kTableBytes = (2 * 256 + 1) * sizeof(float);

}  // namespace

std::unique_ptr<DeviceEncoder> DeviceEncoder::Make(kernels::Backend* backend, kernels::QuantType type,
                                                   int64_t block, int64_t most_values, int64_t most_blocks) {
  if (backend == nullptr || backend->encoders() == nullptr || !kernels::IsQuantized(type)) return nullptr;
  std::unique_ptr<DeviceEncoder> encoder(new DeviceEncoder(*backend, type, block));
  int64_t bytes = 0;
  const auto place = [&](int64_t size) {
    const int64_t at = bytes;
    bytes = (bytes + size + 255) / 256 * 256;
    return at;
  };
  const int64_t values = place(most_values * 4), absmax = place(most_blocks * 4),
                nested = place(kernels::NestedCount(most_blocks) * 4), tables = place(kTableBytes),
                codes = place(kernels::WeightBytes(type, most_values)), absmax_codes = place(most_blocks);
  encoder->memory_ = static_cast<std::byte*>(backend->Allocate(bytes));
  if (encoder->memory_ == nullptr) return nullptr;
  const auto floats = [&](int64_t at) { return reinterpret_cast<float*>(encoder->memory_ + at); };
  encoder->values_ = floats(values);
  encoder->absmax_ = floats(absmax);
  encoder->nested_absmax_ = floats(nested);
  encoder->tables_ = floats(tables);
  encoder->codes_ = reinterpret_cast<uint8_t*>(encoder->memory_ + codes);
  encoder->absmax_codes_ = reinterpret_cast<uint8_t*>(encoder->memory_ + absmax_codes);
  const int64_t entries = type == kernels::QuantType::kINT8 ? 256 : 16;
  backend->CopyIn(Lane::kCompute, encoder->tables_, kernels::CodeBook(type), entries * 4);
  backend->CopyIn(Lane::kCompute, encoder->tables_ + 256, kernels::SignedDynamicMap(), 256 * 4);
  return encoder;
}

DeviceEncoder::~DeviceEncoder() {
  if (memory_ != nullptr) backend_.Release(memory_);
}

absl::Status DeviceEncoder::Finish() {
  if (backend_.Synchronize()) return absl::OkStatus();
  return Error(Reason::kDeviceFault,
               absl::StrCat("the device failed while it quantized a base: ", backend_.error()));
}

absl::Status DeviceEncoder::Quantize(const float* values, int64_t count, uint8_t* codes, float* absmax) {
  backend_.CopyIn(Lane::kCompute, values_, values, count * 4);
  backend_.encoders()->quantize(&backend_.context(), {values_, kernels::DType::kF32}, count, type_, block_,
                                tables_, codes_, absmax_);
  backend_.CopyOut(Lane::kCompute, codes, codes_, kernels::WeightBytes(type_, count));
  backend_.CopyOut(Lane::kCompute, absmax, absmax_, kernels::AbsmaxCount(count, block_) * 4);
  return Finish();
}

absl::Status DeviceEncoder::QuantizeAbsmax(const float* absmax, int64_t blocks, uint8_t* codes,
                                           float* nested_absmax, float* offset) {
  backend_.CopyIn(Lane::kCompute, absmax_, absmax, blocks * 4);
  backend_.encoders()->quantize_absmax(&backend_.context(), absmax_, blocks, tables_ + 256, absmax_codes_,
                                       nested_absmax_, tables_ + 512);
  backend_.CopyOut(Lane::kCompute, codes, absmax_codes_, blocks);
  backend_.CopyOut(Lane::kCompute, nested_absmax, nested_absmax_, kernels::NestedCount(blocks) * 4);
  backend_.CopyOut(Lane::kCompute, offset, tables_ + 512, 4);
  return Finish();
}

}  // namespace nibble::engine
