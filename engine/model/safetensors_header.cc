// The header of a safetensors file: JSON that says of each tensor its type, shape and place.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "engine/model/safetensors.h"
#include "engine/model/safetensors_error.h"
#include "engine/text/json.h"
#include "engine/text/text.h"

namespace nibble::engine {
namespace {

constexpr size_t kMaxTensors = 100'000;
constexpr size_t kMaxRank = 8;
constexpr size_t kMaxNameBytes = 512;
constexpr int kMaxDepth = 4;

struct TypeRow {
  std::string_view name;
  int64_t bytes;
};
// In the order of TensorType.
constexpr TypeRow kTypes[] = {{"F64", 8}, {"F32", 4}, {"F16", 2}, {"BF16", 2}, {"I64", 8},
                              {"I32", 4}, {"I16", 2}, {"I8", 1},  {"U8", 1},   {"BOOL", 1}};

absl::StatusOr<std::vector<int64_t>> ReadShape(std::string_view file, std::string_view name,
                                               simdjson::dom::element field) {
  simdjson::dom::array dims;
  if (field.get(dims) != simdjson::SUCCESS) return BadTensor(file, name, "shape is no list");
  if (dims.size() > kMaxRank) {
    return BadTensor(file, name,
                     absl::StrCat("has ", dims.size(), " dimensions, at most ", kMaxRank, " are allowed"));
  }
  std::vector<int64_t> shape;
  for (const auto dim : dims) {
    uint64_t value = 0;
    if (dim.get(value) != simdjson::SUCCESS || value > uint64_t{INT64_MAX}) {
      return BadTensor(file, name, "shape holds something that is no whole number from 0");
    }
    shape.push_back(static_cast<int64_t>(value));
  }
  return shape;
}

// The fields of one tensor, each exactly once; what we do not know is passed over, as the reference
// does.
absl::StatusOr<TensorInfo> ReadTensor(std::string_view file, std::string_view name,
                                      simdjson::dom::element value) {
  simdjson::dom::object object;
  if (value.get(object) != simdjson::SUCCESS) return BadTensor(file, name, "is no JSON object");
  TensorInfo tensor;
  tensor.name = std::string(name);
  bool has_type = false, has_shape = false, has_offsets = false;
  int64_t begin = 0, end = 0;
  for (const auto field : object) {
    if (field.key == "dtype") {
      std::string_view type;
      if (has_type || field.value.get(type) != simdjson::SUCCESS) {
        return BadTensor(file, name, "dtype must be one string");
      }
      const auto* row = std::find_if(std::begin(kTypes), std::end(kTypes),
                                     [&](const TypeRow& r) { return r.name == type; });
      if (row == std::end(kTypes)) {
        return BadTensor(file, name, absl::StrCat("dtype ", Quote(type), " is not supported"));
      }
      tensor.type = static_cast<TensorType>(row - kTypes);
      has_type = true;
    } else if (field.key == "shape") {
      if (has_shape) return BadTensor(file, name, "shape is given twice");
      ASSIGN_OR_RETURN(tensor.shape, ReadShape(file, name, field.value));
      has_shape = true;
    } else if (field.key == "data_offsets") {
      simdjson::dom::array pair;
      uint64_t values[2] = {0, 0};
      if (has_offsets || field.value.get(pair) != simdjson::SUCCESS || pair.size() != 2 ||
          pair.at(0).get(values[0]) != simdjson::SUCCESS || pair.at(1).get(values[1]) != simdjson::SUCCESS ||
          values[0] > values[1] || values[1] > uint64_t{INT64_MAX}) {
        return BadTensor(file, name, "data_offsets must be [begin, end] with begin <= end");
      }
      begin = static_cast<int64_t>(values[0]);
      end = static_cast<int64_t>(values[1]);
      has_offsets = true;
    }
  }
  if (!has_type || !has_shape || !has_offsets) {
    return BadTensor(file, name, "needs dtype, shape and data_offsets");
  }
  int64_t bytes = TensorTypeBytes(tensor.type);
  for (const int64_t dim : tensor.shape) {
    if (__builtin_mul_overflow(bytes, dim, &bytes)) {
      return BadTensor(file, name, "shape times type is more than 2^63 bytes");
    }
  }
  if (bytes != end - begin) {
    return BadTensor(file, name,
                     absl::StrCat("shape and dtype need ", bytes, " bytes, data_offsets give ", end - begin));
  }
  tensor.offset = begin;
  tensor.size_bytes = bytes;
  return tensor;
}

absl::Status ReadMetadata(std::string_view file, simdjson::dom::element value, SafetensorsHeader& header) {
  simdjson::dom::object object;
  if (value.get(object) != simdjson::SUCCESS) return BadFile(file, "__metadata__ is no JSON object");
  for (const auto field : object) {
    std::string_view text;
    if (field.value.get(text) != simdjson::SUCCESS) {
      return BadFile(file, absl::StrCat("__metadata__.", Quote(field.key), " is no string"));
    }
    if (!header.metadata.emplace(field.key, text).second) {
      return BadFile(file, absl::StrCat("__metadata__.", Quote(field.key), " is given twice"));
    }
  }
  return absl::OkStatus();
}

// No holes, no overlap, and the end is the end of the file.
absl::Status CheckLayout(std::string_view file, const SafetensorsHeader& header, int64_t data_bytes) {
  std::vector<const TensorInfo*> order;
  for (const auto& [name, tensor] : header.tensors) order.push_back(&tensor);
  std::sort(order.begin(), order.end(), [](const TensorInfo* a, const TensorInfo* b) {
    return std::pair(a->offset, a->size_bytes) < std::pair(b->offset, b->size_bytes);
  });
  int64_t at = 0;
  for (const TensorInfo* tensor : order) {
    if (tensor->offset != at) {
      return BadTensor(
          file, tensor->name,
          absl::StrCat("begins at byte ", tensor->offset, " of the data, ",
                       tensor->offset < at ? "overlapping what ends at " : "leaving a hole after ", at));
    }
    if (tensor->size_bytes > data_bytes - at) {
      return BadTensor(
          file, tensor->name,
          absl::StrCat("ends at byte ", at + tensor->size_bytes, " of the data, but the file has only ",
                       data_bytes, "; it is truncated or its header lies"));
    }
    at += tensor->size_bytes;
  }
  if (at != data_bytes) {
    return BadFile(file, absl::StrCat("has ", data_bytes, " bytes of data, its tensors take ", at));
  }
  return absl::OkStatus();
}

}  // namespace

std::string_view TensorTypeName(TensorType type) { return kTypes[static_cast<int>(type)].name; }
int64_t TensorTypeBytes(TensorType type) { return kTypes[static_cast<int>(type)].bytes; }

absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(std::string_view file, std::string_view header,
                                                         int64_t data_bytes) {
  if (header.empty() || header.front() != '{') {
    return BadFile(file, "the header does not begin with '{'; this is no safetensors file");
  }
  simdjson::dom::parser parser;
  simdjson::dom::object root;
  RETURN_IF_ERROR(ParseObject(parser, header, kMaxDepth, root, [&](std::string_view what) {
    return BadFile(file, absl::StrCat("the header is not valid JSON: ", View(what)));
  }));
  SafetensorsHeader result;
  bool has_metadata = false;
  for (const auto field : root) {
    if (field.key == "__metadata__") {
      if (has_metadata) return BadFile(file, "__metadata__ is given twice");
      has_metadata = true;
      RETURN_IF_ERROR(ReadMetadata(file, field.value, result));
      continue;
    }
    if (field.key.size() > kMaxNameBytes) {
      return BadTensor(file, field.key,
                       absl::StrCat("the name has ", field.key.size(), " bytes, at most ", kMaxNameBytes));
    }
    ASSIGN_OR_RETURN(TensorInfo tensor, ReadTensor(file, field.key, field.value));
    if (!result.tensors.emplace(tensor.name, std::move(tensor)).second) {
      return BadTensor(file, field.key, "is in the header twice");
    }
    if (result.tensors.size() > kMaxTensors) {
      return BadFile(file, absl::StrCat("has more than ", kMaxTensors, " tensors"));
    }
  }
  RETURN_IF_ERROR(CheckLayout(file, result, data_bytes));
  return result;
}

}  // namespace nibble::engine
