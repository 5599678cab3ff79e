// What the server checks of a base model before it takes it: enough that a job on it can start.
//
// config.json is read; every shard's header is checked against the file's size (rank, data types, offsets
// that tile the data exactly); shards named by the index are there; every tensor the architecture needs is
// somewhere, in the shape config.json's numbers give it, and there is none without a place; tokenizer.json is
// byte-level or byte-fallback BPE with merges, its vocabulary within config.json's. Values are not read. All
// input is hostile: headers at most 16 MiB, tokenizer.json at most 64 MiB.
//
// Files are reached through a ModelFiles, so blobs and directories are checked by the same code. Pure but
// for that.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/spec/model_config.h"
#include "server/core/types.h"

namespace nibble::server {

struct ModelFiles {
  std::vector<core::FileRef> files;  // sha256 may still be empty
  // Up to max_bytes of a file of the list from an offset.
  std::function<absl::StatusOr<std::string>(const core::FileRef&, int64_t offset, int64_t max_bytes)> read;
};

struct ModelFacts {
  std::string config_json;
  spec::ModelConfig config;
};
absl::StatusOr<ModelFacts> CheckModel(const ModelFiles& model);

// True for a plain file name: letters, digits, '.', '_', '-', '+'; not hidden; at most 128.
bool IsModelFileName(std::string_view name);
// True for the files of a directory a model is made of; weights in other forms and notebooks stay out.
bool BelongsToModel(std::string_view name);
// Over names, sizes and digests: the identity of the base.
std::string ManifestDigest(std::vector<core::FileRef> files);

struct TensorFacts {
  std::string dtype;  // as the header has it
  std::vector<int64_t> shape;
};
// One shard's header, given the bytes behind it: its tensors by name.
absl::StatusOr<std::map<std::string, TensorFacts>> CheckSafetensorsHeader(
    std::string_view file, std::string_view header_json, int64_t data_bytes);
// Those of all shards against the architecture: MODEL_FILE_INVALID names the first that is missing, of
// another type or shape, or without a place in the model.
absl::Status CheckTensors(const std::map<std::string, TensorFacts>& tensors, const spec::ModelConfig& config);

}  // namespace nibble::server
