// The quantized base as a file: made once per machine, then mapped by every engine that needs it.
//
// Named by the digest of what went into it, so a file that is there is the right one: it appears by
// a rename, after its bytes are durable. Two processes that want the same file make it once; the
// second waits. A maker that dies leaves only a temporary file, which the next maker overwrites.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "engine/base_tensors.h"
#include "engine/safetensors.h"
#include "engine/spec/base_layout.h"
#include "engine/spec/train_spec.h"
#include "kernels/backend.h"

namespace nibble::engine {

// What the kernels call a kind of quantization.
kernels::QuantType KernelType(spec::QuantKind quant);

// SHA-256 over config.json, the weight files and the quantization. Hashing gigabytes takes a while,
// so digests of files are remembered in cache_dir by name, size and time of change.
absl::StatusOr<std::string> BaseDigest(const std::string& model_dir, const std::string& cache_dir,
                                       const Checkpoint& checkpoint, spec::QuantKind quant,
                                       bool double_quant);

struct BaseCacheRequest {
  std::string cache_dir;
  std::string digest;
  spec::QuantKind quant = spec::QuantKind::kNF4;
  bool nested = true;  // double quantization is on for this kind
  int threads = 1;
  kernels::Backend* backend = nullptr;  // quantizes there when it can; the file is the same
  std::function<void(int64_t, int64_t)> progress;  // may be empty
};
struct BaseCacheFile {
  std::string path;
  bool found = false;  // it was there already
};
// Finds or makes the file. `layout` is the model's; memory used beside it is a few chunks of a
// tensor, on the device, too, when that is where it is quantized.
absl::StatusOr<BaseCacheFile> EnsureBaseCache(const BaseCacheRequest& request,
                                              const BaseTensors& tensors,
                                              const spec::BaseLayout& layout);

// The first page of the file, kBaseHeaderBytes long.
std::string BaseCacheHeader(const std::string& digest, const spec::BaseLayout& layout);

}  // namespace nibble::engine
