// Writing safetensors files: the same tensors and metadata give the same bytes. Tensors are sorted by name,
// the header is padded to 8 bytes. Functions; thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "engine/model/safetensors.h"

namespace nibble::engine {

using ByteSink = std::function<absl::Status(const void*, int64_t)>;
struct TensorToWrite {
  std::string name;
  TensorType type = TensorType::kF32;
  std::vector<int64_t> shape;
  const void* data = nullptr;
  // Instead of data: hands over the tensor's bytes, all of them, when they are asked for.
  std::function<absl::Status(const ByteSink&)> pieces;

  int64_t Bytes() const;  // shape times type
};
// Hands the bytes of a file to `write`, piece by piece; the first error ends it.
absl::Status StreamSafetensors(const std::vector<TensorToWrite>& tensors,
                               const std::map<std::string, std::string>& metadata, const ByteSink& write);
// The bytes of a file.
std::string SerializeSafetensors(const std::vector<TensorToWrite>& tensors,
                                 const std::map<std::string, std::string>& metadata);

}  // namespace nibble::engine
