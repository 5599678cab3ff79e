// The quantized base as a file: made once per machine, then mapped by every engine that needs it.
//
// Named by the digest of what went into it, so a file that is there is the right one: it appears by
// a rename, after its bytes are durable. Two processes that want the same file make it once; the
// second waits. A maker that dies leaves only a temporary file, which the next maker overwrites.
//
// Order. The header names, array by array, the order it lies in: "flat 1" or "tile 1" (WeightOrder in
// kernels/kernel_table.h). Values and places do not depend on it, so neither does the digest. Files are
// made in tiles, whoever makes them. An engine of the host transcodes a flat one that it finds, once; whoever
// has that one mapped keeps it until he closes it. An engine of a device takes both: tiles are undone on the
// way to the device.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "base/file.h"
#include "engine/model/base_tensors.h"
#include "engine/model/safetensors.h"
#include "engine/spec/base_layout.h"
#include "engine/spec/train_spec.h"
#include "kernels/backend.h"

namespace nibble::engine {

// What the kernels call a kind of quantization.
kernels::QuantType KernelType(spec::QuantKind quant);

// SHA-256 over config.json, the weight files and the quantization. Hashing gigabytes takes a while,
// so digests of files are remembered in cache_dir by name, size and time of change. `stop` as in
// BaseModelOptions.
absl::StatusOr<std::string> BaseDigest(const std::string& model_dir, const std::string& cache_dir,
                                       const Checkpoint& checkpoint, spec::QuantKind quant,
                                       bool double_quant, const std::function<bool()>& stop = nullptr);

// SHA-256 over the weight files alone: whose weights an adapter belongs to, however they are quantized.
absl::StatusOr<std::string> WeightsDigest(const std::string& cache_dir, const Checkpoint& checkpoint);

struct BaseCacheRequest {
  std::string cache_dir;
  std::string digest;
  spec::QuantKind quant = spec::QuantKind::kNF4;
  bool nested = true;  // double quantization is on for this kind
  // Made in tiles, and a flat file that is there is transcoded for the host; false: made flat, taken as is.
  bool tiles = true;
  int threads = 1;
  kernels::Backend* backend = nullptr;  // whose file it is: quantizes there when it can; null = the host's
  std::function<void(int64_t, int64_t)> progress;  // may be empty
  std::function<bool()> stop;                      // may be empty; see BaseModelOptions
};
std::string BaseCachePath(const BaseCacheRequest& request);
struct BaseCacheFile {
  std::string path;
  bool found = false;  // it was there already
};
// Finds, transcodes or makes the file; one that is flat stays when it cannot be transcoded. `layout` is the
// model's; memory used beside it is a few chunks of a tensor, on the device, too, when that is where it is
// quantized.
absl::StatusOr<BaseCacheFile> EnsureBaseCache(const BaseCacheRequest& request,
                                              const BaseTensors& tensors,
                                              const spec::BaseLayout& layout);

// The first page of the file, kBaseHeaderBytes long.
std::string BaseCacheHeader(const std::string& digest, const spec::BaseLayout& layout, bool tiles);

// Whether what can lie in tiles does, by the header; MODEL_FILE_INVALID when the file is of no order of this
// layout. Asked of the mapping that is used: another process may put a file in tiles in its place any time.
absl::StatusOr<bool> IsInTiles(const MappedFile& file, const std::string& path, const std::string& digest,
                               const spec::BaseLayout& layout);

// Bytes first .. first + count - 1 of the file as they are when it is flat; both ends at multiples of
// kBaseEntryAlignment.
void ReadFlat(std::span<const std::byte> file, const spec::BaseLayout& layout, bool tiles, int64_t first,
              int64_t count, std::byte* out);

}  // namespace nibble::engine
