#include "engine/model/bnb_tensor.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/outside_text.h"
#include "base/status.h"
#include "engine/text/text.h"
#include "kernels/nf4.h"

namespace nibble::engine {
namespace {

using nlohmann::json;

constexpr int64_t kMaxStateBytes = 64 << 10;

absl::Status ReadFloats(const Checkpoint& checkpoint, const TensorInfo& tensor,
                        std::vector<float>& out) {
  out.resize(static_cast<size_t>(tensor.Elements()));
  RETURN_IF_ERROR(checkpoint.ReadF32(tensor, out.data()));
  for (const float value : out) {
    if (std::isfinite(value)) continue;
    return Error(Reason::kModelFileInvalid,
                 absl::StrCat(checkpoint.Where(tensor.name), " holds a value that is not finite"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status BnbTensor::Bad(std::string_view what) const {
  return Error(Reason::kModelFileInvalid, absl::StrCat(checkpoint_->Where(name_), " ", View(what)));
}

absl::StatusOr<const TensorInfo*> BnbTensor::Part(const std::string& suffix, TensorType type,
                                                  int64_t count) {
  const TensorInfo* part = checkpoint_->Find(name_ + suffix);
  if (part == nullptr)
    return Bad(absl::StrCat("is stored in four bits, but ", suffix, " is missing"));
  if (part->type != type || (count >= 0 && part->Elements() != count)) {
    return Bad(absl::StrCat("has ", suffix, " of ", part->Elements(), " values of type ",
                            View(TensorTypeName(part->type)), "; ", count, " of type ",
                            View(TensorTypeName(type)), " are needed"));
  }
  companions_.push_back(part->name);
  return part;
}

absl::Status BnbTensor::ReadState(const TensorInfo& state, const std::vector<int64_t>& shape) {
  if (state.type != TensorType::kU8 || state.size_bytes > kMaxStateBytes) {
    return Bad("has a quant_state that is no short text");
  }
  std::string text(static_cast<size_t>(state.size_bytes), '\0');
  RETURN_IF_ERROR(checkpoint_->Read(state, 0, state.size_bytes, text.data()));
  if (JsonDepth(text) > kMaxJsonDepth) return Bad("has a quant_state that is nested too deep");
  const json value = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!value.is_object()) return Bad("has a quant_state that is no JSON object");
  if (value.value("shape", json()) != json(shape)) {
    return Bad(absl::StrCat("has shape ", Quote(value.value("shape", json()).dump()),
                            " in its quant_state, config.json asks for ", json(shape).dump()));
  }
  const json block = value.value("blocksize", json());
  if (!block.is_number_unsigned() || block.get<uint64_t>() < 32 || block.get<uint64_t>() > 4096 ||
      (block.get<uint64_t>() & (block.get<uint64_t>() - 1)) != 0) {
    return Bad("has a blocksize that is no power of two from 32 to 4096");
  }
  block_ = block.get<int64_t>();
  nested_ = value.contains("nested_offset");
  if (!nested_) return absl::OkStatus();
  const json offset = value["nested_offset"];
  if (!offset.is_number() || !std::isfinite(static_cast<float>(offset.get<double>())) ||
      value.value("nested_blocksize", json()) != kernels::kNestedBlock) {
    return Bad(
        "has a double quantization that is not supported (blocks of 256 and a finite offset are)");
  }
  offset_ = static_cast<float>(offset.get<double>());
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<const BnbTensor>> BnbTensor::Find(
    const Checkpoint& checkpoint, const std::string& name, const std::vector<int64_t>& shape) {
  auto tensor = std::make_shared<BnbTensor>();
  tensor->checkpoint_ = &checkpoint;
  tensor->name_ = name;
  const std::string nf4 = name + ".quant_state.bitsandbytes__nf4";
  const std::string fp4 = name + ".quant_state.bitsandbytes__fp4";
  const bool is_nf4 = checkpoint.Find(nf4) != nullptr;
  const TensorInfo* state = checkpoint.Find(is_nf4 ? nf4 : fp4);
  tensor->codes_ = checkpoint.Find(name);
  if (state == nullptr || tensor->codes_ == nullptr) return std::shared_ptr<const BnbTensor>();
  tensor->type_ = is_nf4 ? kernels::QuantType::kNF4 : kernels::QuantType::kFP4;
  tensor->companions_.push_back(state->name);
  RETURN_IF_ERROR(tensor->ReadState(*state, shape));
  tensor->n_ = shape[0];
  tensor->k_ = shape[1];
  const int64_t count = tensor->n_ * tensor->k_;
  const int64_t blocks = kernels::AbsmaxCount(count, tensor->block_);
  // Stored as other types of the same bytes by some trainers; the bytes are what counts.
  if (tensor->codes_->size_bytes != (count + 1) / 2) {
    return tensor->Bad(absl::StrCat("has ", tensor->codes_->size_bytes,
                                    " bytes of codes, its shape needs ", (count + 1) / 2));
  }
  ASSIGN_OR_RETURN(tensor->code_book_, tensor->Part(".quant_map", TensorType::kF32, 16));
  ASSIGN_OR_RETURN(
      tensor->absmax_,
      tensor->Part(".absmax", tensor->nested_ ? TensorType::kU8 : TensorType::kF32, blocks));
  if (tensor->nested_) {
    ASSIGN_OR_RETURN(tensor->nested_absmax_, tensor->Part(".nested_absmax", TensorType::kF32,
                                                          kernels::NestedCount(blocks)));
    ASSIGN_OR_RETURN(tensor->nested_map_, tensor->Part(".nested_quant_map", TensorType::kF32, 256));
  }
  return std::shared_ptr<const BnbTensor>(std::move(tensor));
}

absl::StatusOr<std::unique_ptr<LoadedBnbTensor>> BnbTensor::Load() const {
  auto loaded = std::make_unique<LoadedBnbTensor>();
  const auto read_bytes = [&](const TensorInfo& tensor, std::vector<uint8_t>& out) {
    out.resize(static_cast<size_t>(tensor.size_bytes));
    return checkpoint_->Read(tensor, 0, tensor.size_bytes, out.data());
  };
  RETURN_IF_ERROR(read_bytes(*codes_, loaded->codes));
  RETURN_IF_ERROR(ReadFloats(*checkpoint_, *code_book_, loaded->code_book));
  kernels::WeightView& view = loaded->view;
  if (nested_) {
    RETURN_IF_ERROR(read_bytes(*absmax_, loaded->absmax_codes));
    RETURN_IF_ERROR(ReadFloats(*checkpoint_, *nested_absmax_, loaded->nested_absmax));
    RETURN_IF_ERROR(ReadFloats(*checkpoint_, *nested_map_, loaded->nested_map));
    view.absmax_codes = loaded->absmax_codes.data();
    view.nested_absmax = loaded->nested_absmax.data();
    view.nested_map = loaded->nested_map.data();
    view.offset = offset_;
  } else {
    RETURN_IF_ERROR(ReadFloats(*checkpoint_, *absmax_, loaded->absmax));
    view.absmax = loaded->absmax.data();
  }
  view.type = type_;
  view.n = n_;
  view.k = k_;
  view.block = block_;
  view.data = loaded->codes.data();
  view.code_book = loaded->code_book.data();
  return loaded;
}

}  // namespace nibble::engine
