#include "engine/model/safetensors_write.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "engine/text/json.h"
#include "engine/text/text.h"

namespace nibble::engine {

int64_t TensorToWrite::Bytes() const {
  int64_t bytes = TensorTypeBytes(type);
  for (const int64_t dim : shape) bytes *= dim;
  return bytes;
}

absl::Status StreamSafetensors(const std::vector<TensorToWrite>& tensors,
                               const std::map<std::string, std::string>& metadata, const ByteSink& write) {
  std::vector<const TensorToWrite*> order;
  for (const TensorToWrite& tensor : tensors) order.push_back(&tensor);
  std::sort(order.begin(), order.end(),
            [](const TensorToWrite* a, const TensorToWrite* b) { return a->name < b->name; });
  std::string header = "{";
  if (!metadata.empty()) {
    header += "\"__metadata__\":{";
    for (const auto& [key, value] : metadata) {
      if (header.back() != '{') header += ',';
      absl::StrAppend(&header, JsonString(key), ":", JsonString(value));
    }
    header += '}';
  }
  int64_t offset = 0;
  for (const TensorToWrite* tensor : order) {
    if (header.back() != '{') header += ',';
    absl::StrAppend(&header, JsonString(tensor->name), ":{\"dtype\":\"", View(TensorTypeName(tensor->type)),
                    "\",\"shape\":[");
    for (size_t i = 0; i < tensor->shape.size(); ++i) {
      absl::StrAppend(&header, i > 0 ? "," : "", tensor->shape[i]);
    }
    const int64_t size = tensor->Bytes();
    absl::StrAppend(&header, "],\"data_offsets\":[", offset, ",", offset + size, "]}");
    offset += size;
  }
  header += '}';
  header.resize((header.size() + 7) / 8 * 8, ' ');
  std::string start;
  for (int i = 0; i < 8; ++i) start += static_cast<char>(header.size() >> (8 * i) & 0xFF);
  start += header;
  RETURN_IF_ERROR(write(start.data(), static_cast<int64_t>(start.size())));
  for (const TensorToWrite* tensor : order) {
    RETURN_IF_ERROR(tensor->pieces ? tensor->pieces(write) : write(tensor->data, tensor->Bytes()));
  }
  return absl::OkStatus();
}

std::string SerializeSafetensors(const std::vector<TensorToWrite>& tensors,
                                 const std::map<std::string, std::string>& metadata) {
  std::string out;
  CHECK_OK(StreamSafetensors(tensors, metadata, [&](const void* data, int64_t size) {
    out.append(static_cast<const char*>(data), static_cast<size_t>(size));
    return absl::OkStatus();
  }));
  return out;
}

}  // namespace nibble::engine
