#include "engine/model/base_tensors.h"

#include <cmath>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/error.h"
#include "base/status.h"
#include "engine/text/text.h"
#include "kernels/nf4.h"

namespace nibble::engine {
namespace {

using spec::BasePart;
using spec::Module;

absl::Status Bad(std::string_view where, std::string_view what) {
  return Error(Reason::kModelFileInvalid, absl::StrCat(View(where), " ", View(what)));
}

std::string ShapeText(const std::vector<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

}  // namespace

absl::Status BaseTensors::Add(const spec::ModelConfig& model, const spec::CheckpointTensor& wanted) {
  const auto& [part, layer, module, name, shape] = wanted;
  const TensorInfo* tensor = checkpoint_->Find(name);
  if (tensor == nullptr) tensor = checkpoint_->Find(spec::OtherCheckpointName(model, name));
  if (tensor == nullptr) {
    return Bad(absl::StrCat("tensor ", Quote(name)),
               "is missing from the checkpoint, though config.json asks for it");
  }
  const std::string where = checkpoint_->Where(tensor->name);
  if (part == BasePart::kCodes) {
    ASSIGN_OR_RETURN(auto quantized, BnbTensor::Find(*checkpoint_, tensor->name, shape));
    if (quantized != nullptr) {
      tensors_[{part, layer, module}] = {tensor, shape[0] * shape[1], std::move(quantized)};
      return absl::OkStatus();
    }
  }
  if (tensor->type != TensorType::kF32 && tensor->type != TensorType::kF16 &&
      tensor->type != TensorType::kBF16) {
    return Bad(where,
               absl::StrCat(
                   "has type ", View(TensorTypeName(tensor->type)),
                   "; a base must be given in F32, F16 or BF16, or in four bits by bitsandbytes"));
  }
  if (tensor->shape != shape) {
    return Bad(where, absl::StrCat("has shape ", ShapeText(tensor->shape),
                                   ", config.json asks for ", ShapeText(shape)));
  }
  tensors_[{part, layer, module}] = {tensor, tensor->Elements(), nullptr};
  return absl::OkStatus();
}

absl::Status BaseTensors::RefuseStrays(const spec::ModelConfig& model) const {
  std::set<std::string> used;
  for (const auto& [key, tensor] : tensors_) {
    used.insert(tensor.info->name);
    if (tensor.quantized != nullptr) {
      used.insert(tensor.quantized->companions().begin(), tensor.quantized->companions().end());
    }
  }
  for (const std::string& name : checkpoint_->Names()) {
    if (used.contains(name) || spec::IsLeftOut(model, name)) continue;
    return Bad(checkpoint_->Where(name),
               absl::StrCat("has no place in a ", model.model_type, " model with ", model.layers,
                            " layers; training would leave it out"));
  }
  return absl::OkStatus();
}

absl::StatusOr<BaseTensors> BaseTensors::Make(const Checkpoint* checkpoint,
                                              const spec::ModelConfig& model) {
  BaseTensors base;
  base.checkpoint_ = checkpoint;
  for (const spec::CheckpointTensor& wanted : spec::CheckpointTensors(model)) {
    RETURN_IF_ERROR(base.Add(model, wanted));
  }
  RETURN_IF_ERROR(base.RefuseStrays(model));
  return base;
}

const BaseTensor* BaseTensors::Find(BasePart part, int64_t layer, Module module) const {
  const auto it = tensors_.find({part, layer, module});
  return it == tensors_.end() ? nullptr : &it->second;
}

absl::StatusOr<TensorReader> BaseTensors::Open(const BaseTensor& tensor) const {
  TensorReader reader;
  reader.checkpoint_ = checkpoint_;
  reader.info_ = tensor.info;
  if (tensor.quantized != nullptr) {
    ASSIGN_OR_RETURN(reader.loaded_, tensor.quantized->Load());
  }
  return reader;
}

absl::Status TensorReader::Read(int64_t first, int64_t count, float* out) const {
  if (loaded_ != nullptr) {
    kernels::DequantizeRange(loaded_->view, first, count, out);
    return absl::OkStatus();
  }
  RETURN_IF_ERROR(checkpoint_->ReadF32(*info_, first, count, out));
  for (int64_t i = 0; i < count; ++i) {
    if (std::isfinite(out[i])) [[likely]]
      continue;
    return Bad(checkpoint_->Where(info_->name),
               absl::StrCat("holds ", out[i], " at element ", first + i, "; the file is damaged"));
  }
  return absl::OkStatus();
}

}  // namespace nibble::engine
