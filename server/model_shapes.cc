#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/error.h"
#include "base/status.h"
#include "engine/spec/checkpoint_tensors.h"
#include "server/model_check.h"

namespace nibble::server {
namespace {

using Shape = std::vector<int64_t>;

__int128 Elements(const Shape& shape) {
  __int128 count = 1;
  for (const int64_t size : shape) count *= size;
  return count;
}

std::string Text(const Shape& shape) { return absl::StrCat("[", absl::StrJoin(shape, ", "), "]"); }

absl::Status Bad(std::string_view what) {
  return Error(Reason::kModelFileInvalid,
               absl::StrCat("model.safetensors: ", absl::string_view(what.data(), what.size())))
      .With("file", "model.safetensors");
}

// Of one that is there.
absl::Status CheckOne(const std::string& name, const TensorFacts& tensor, const Shape& wanted) {
  if (tensor.dtype == "U8" && wanted.size() == 2) {
    // Two weights a byte, in whatever shape bitsandbytes gave them; the engine reads the rest of it.
    if (Elements(tensor.shape) == (Elements(wanted) + 1) / 2) return absl::OkStatus();
    return Bad(absl::StrCat(name, " has shape ", Text(tensor.shape), " in four bits, config.json asks for ",
                            Text(wanted)));
  }
  if (tensor.dtype != "F32" && tensor.dtype != "F16" && tensor.dtype != "BF16") {
    return Bad(absl::StrCat(name, " has type ", tensor.dtype,
                            "; a base must be given in F32, F16 or BF16, or in four bits by bitsandbytes"));
  }
  if (tensor.shape == wanted) return absl::OkStatus();
  return Bad(absl::StrCat(name, " has shape ", Text(tensor.shape), ", config.json asks for ", Text(wanted),
                          "; they are not of the same model"));
}

}  // namespace

absl::Status CheckTensors(const std::map<std::string, TensorFacts>& tensors,
                          const spec::ModelConfig& config) {
  std::map<std::string, bool> used;  // and whether in four bits
  for (const auto& [part, layer, module, name, shape] : spec::CheckpointTensors(config)) {
    auto found = tensors.find(name);
    if (found == tensors.end()) found = tensors.find(spec::OtherCheckpointName(config, name));
    if (found == tensors.end())
      return Bad(absl::StrCat("no shard holds ", name, ", which config.json asks for"));
    RETURN_IF_ERROR(CheckOne(found->first, found->second, shape));
    used[found->first] = found->second.dtype == "U8";
  }
  // A weight in four bits has companions: "….weight.absmax". They come right after it in this order.
  std::string companions = "\x01";
  for (const auto& [name, tensor] : tensors) {
    const auto mine = used.find(name);
    if (mine != used.end()) {
      if (mine->second) companions = name + ".";
      continue;
    }
    if (absl::StartsWith(name, companions) || spec::IsLeftOut(config, name)) continue;
    return Bad(absl::StrCat(name.substr(0, 128), " has no place in a ", config.model_type, " model with ",
                            config.layers, " layers; training would leave it out"));
  }
  return absl::OkStatus();
}

}  // namespace nibble::server
