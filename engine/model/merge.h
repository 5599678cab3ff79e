// A model with an adapter added into its weights: a Hugging Face directory that needs no adapter.
//
// W' = W + scale * B A for every matrix the adapter has, computed in fp32 and rounded once to the type the
// file has it in. Two values may stand for W: what the files say (usually the better model), or what they
// come to after quantization, which is what the adapter was trained on (reference: PEFT's merge_and_unload
// on a 16-bit and on a quantized model). A base that is stored in four bits has only the second; it comes
// out in BF16, without its quantization_config.
//
// Where the adapter has learned to end its turns with a token that the base's files do not name as an end (a
// base that was never tuned, a template by name), generation_config.json names it.
//
// Shards keep their names and their tensors' order; one shard is written at a time, rows at a time. The
// directory appears by a rename when all of it is durable. One thread at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "engine/model/adapter.h"
#include "engine/model/base_model.h"

namespace nibble::engine {

enum class MergeOnto : uint8_t { kOriginal, kQuantized };

struct MergeOptions {
  BaseModelOptions base;  // how it is quantized is the adapter's when that says so
  std::string adapter_dir;
  std::string out_dir;  // must not exist, or be empty
  MergeOnto onto = MergeOnto::kOriginal;
  bool any_base = false;  // merge even when the adapter was trained on other weight files
  // (shards written, shards in all); may be empty.
  std::function<void(int64_t, int64_t)> progress;
};

struct MergeReport {
  AdapterConfig config;
  AdapterBase base;         // as merged onto
  bool base_known = false;  // the adapter says which weights it belongs to
  int64_t matrices = 0;
  int64_t files = 0;
  int64_t size_bytes = 0;
  // What ends an answer on top of the base's EOS, because the adapter has learned it; "" = nothing.
  std::string end_of_turn;
};

absl::StatusOr<MergeReport> MergeAdapter(const MergeOptions& options);

}  // namespace nibble::engine
