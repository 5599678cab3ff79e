// The frozen base: quantized linears, and everything else as 16-bit floats.
//
// Open reads a Hugging Face directory (config.json, safetensors shards), quantizes the linears with
// kernels/nf4, and writes one cache file laid out by engine/spec/base_layout.h; then, and at once
// on every later Open, it maps that file read-only. The file's name is the digest of what went into
// it: config, weights, quantization, layout version. While quantizing, one tensor is in memory at a
// time.
//
// Immutable after Open; views point into the mapping and live as long as the object.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "engine/model/base_view.h"
#include "engine/spec/model_config.h"
#include "engine/spec/train_spec.h"
#include "kernels/backend.h"
#include "kernels/kernel_table.h"

namespace nibble::engine {

struct BaseModelOptions {
  std::string model_dir;
  std::string cache_dir;
  spec::QuantKind quant = spec::QuantKind::kNF4;
  bool double_quant = true;
  // Keeps what is not quantized (with kBF16 the linears too) in fp32 when the files have fp32; for
  // tests that compare logits. Not what memory plans count.
  bool exact = false;
  // The order of the cache file (base_cache.h); an exact base is flat.
  bool tiles = true;
  int threads = 1;
  // Where to quantize, when it can; null = on the host. The bits are the same.
  kernels::Backend* backend = nullptr;
  // Asked before any weight is read; what it says against the model is what Open answers. May be empty.
  std::function<absl::Status(const spec::ModelConfig&)> takes;
  // (tensors done, tensors in all) while quantizing; may be empty.
  std::function<void(int64_t, int64_t)> progress;
  // Asked every few megabytes while the model's files are hashed and the base is made (by another process,
  // too), mapped and compared; true: it is given up, with an error of no reason. May be empty.
  std::function<bool()> stop;
};

class BaseModel {
 public:
  static absl::StatusOr<std::unique_ptr<BaseModel>> Open(const BaseModelOptions& options);
  ~BaseModel();

  const spec::ModelConfig& config() const;
  // Into the mapped file; as long as the base is there, and not unmapped.
  const BaseView& view() const;
  const std::string& digest() const;     // 64 hex digits
  const std::string& weights_digest() const;  // of the files it was made from, see base_cache.h
  int64_t bytes() const;                 // of the mapped file
  // The mapped file; empty when it is exact, or unmapped.
  std::span<const std::byte> file() const;
  // Whether what can lie in tiles does.
  bool tiles() const;
  // Bytes of the mapped file as they are when it is flat; see ReadFlat in base_cache.h.
  void CopyFlat(int64_t first, int64_t count, std::byte* out) const;
  // When its bytes have gone elsewhere: the views point nowhere from now on, the numbers stay.
  void Unmap();
  bool cached() const;                   // true when Open found the file
  bool tied() const { return view().head.data == view().embedding.data; }

 private:
  struct Impl;
  explicit BaseModel(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace nibble::engine
