#include "engine/model/merged_weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/status.h"
#include "engine/model/floats.h"
#include "engine/spec/base_layout.h"
#include "engine/spec/checkpoint_tensors.h"
#include "engine/text/text.h"
#include "kernels/nf4.h"

namespace nibble::engine {
namespace {

using spec::BasePart;
using spec::Module;

constexpr int64_t kChunkElements = 1 << 20;  // at a time

// Rounded once to the stored type; what does not fit becomes infinite and is refused by the caller.
void Encode(const float* values, int64_t count, TensorType type, char* out) {
  if (type == TensorType::kF32) {
    std::memcpy(out, values, static_cast<size_t>(count) * 4);
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    const uint16_t bits =
        type == TensorType::kBF16 ? Bf16FromFloat(values[i]) : F16FromFloat(values[i]);
    std::memcpy(out + 2 * i, &bits, 2);
  }
}

// Of what the type holds.
float Largest(TensorType type) {
  if (type == TensorType::kF16) return 65504.0f;
  return type == TensorType::kBF16 ? 0x1.FEp127f : std::numeric_limits<float>::max();
}

// kColumns columns of a row: values += scale * b A, the sum over the rank in its order.
template <int kColumns>
void AddColumns(const float* b, const float* a, int64_t r, int64_t k, float scale, float* values) {
  float sums[kColumns] = {};
  for (int64_t j = 0; j < r; ++j, a += k) {
    for (int i = 0; i < kColumns; ++i) sums[i] += b[j] * a[i];
  }
  for (int i = 0; i < kColumns; ++i) values[i] += scale * sums[i];
}

void AddRow(const AdapterPair& pair, float scale, int64_t r, int64_t row, int64_t k, float* values) {
  constexpr int kWide = 16;  // sums that stay in registers
  const float* const b = pair.b.data() + row * r;
  int64_t i = 0;
  for (; i + kWide <= k; i += kWide) AddColumns<kWide>(b, pair.a.data() + i, r, k, scale, values + i);
  for (; i < k; ++i) AddColumns<1>(b, pair.a.data() + i, r, k, scale, values + i);
}

absl::Status CopyTensor(const SafetensorsFile& file, const TensorInfo& tensor, const ByteSink& sink) {
  std::vector<char> bytes(static_cast<size_t>(std::min<int64_t>(tensor.size_bytes, kChunkElements * 4)));
  for (int64_t at = 0; at < tensor.size_bytes; at += static_cast<int64_t>(bytes.size())) {
    const int64_t count = std::min<int64_t>(tensor.size_bytes - at, static_cast<int64_t>(bytes.size()));
    RETURN_IF_ERROR(file.Read(tensor, at, count, bytes.data()));
    RETURN_IF_ERROR(sink(bytes.data(), count));
  }
  return absl::OkStatus();
}

}  // namespace

MergedWeights::MergedWeights(const spec::ModelConfig& model, const BaseTensors& tensors,
                             const Adapter& adapter, const BaseModel* quantized, int threads)
    : model_(model), tensors_(tensors), adapter_(adapter), quantized_(quantized), pool_(threads) {
  std::map<std::pair<int64_t, Module>, const AdapterPair*> pairs;
  for (const AdapterPair& pair : adapter_.pairs) pairs[{pair.layer, pair.module}] = &pair;
  for (int64_t layer = 0; layer < model_.layers; ++layer) {
    for (const Module module : spec::ModulesOf(model_)) {
      const BaseTensor* const tensor = tensors_.Find(BasePart::kCodes, layer, module);
      const auto it = pairs.find({layer, module});
      linears_[tensor->info->name] = {layer, module, tensor, it == pairs.end() ? nullptr : it->second};
      if (tensor->quantized != nullptr) {
        decoded_.insert(tensor->quantized->companions().begin(), tensor->quantized->companions().end());
      }
    }
  }
}

absl::Status MergedWeights::Merge(const Linear& linear, TensorType type, const ByteSink& sink) {
  const spec::LinearShape shape = spec::ShapeOf(model_, linear.module);
  const int64_t k = shape.k, rows_at_once = std::max<int64_t>(1, kChunkElements / k);
  const auto scale = static_cast<float>(adapter_.config.Scale());
  std::optional<TensorReader> reader;
  if (quantized_ == nullptr) {
    ASSIGN_OR_RETURN(reader, tensors_.Open(*linear.tensor));
  }
  std::vector<float> values(static_cast<size_t>(std::min(rows_at_once, shape.n) * k));
  std::vector<char> bytes(values.size() * static_cast<size_t>(TensorTypeBytes(type)));
  for (int64_t first = 0; first < shape.n; first += rows_at_once) {
    const int64_t rows = std::min(rows_at_once, shape.n - first);
    if (reader.has_value()) RETURN_IF_ERROR(reader->Read(first * k, rows * k, values.data()));
    pool_.Run(rows, [&](int64_t row, int) {
      float* const to = values.data() + row * k;
      if (quantized_ != nullptr) {
        kernels::DequantizeRange(quantized_->view()
                                     .layers[static_cast<size_t>(linear.layer)]
                                     .linear[static_cast<int>(linear.module)],
                                 (first + row) * k, k, to);
      }
      if (linear.pair != nullptr) {
        AddRow(*linear.pair, scale, adapter_.config.r, first + row, k, to);
      }
      Encode(to, k, type, bytes.data() + row * k * TensorTypeBytes(type));
    });
    const float limit = Largest(type);
    for (int64_t i = 0; i < rows * k; ++i) {
      if (std::abs(values[static_cast<size_t>(i)]) <= limit) continue;
      return Error(Reason::kModelFileInvalid,
                   absl::StrCat("merged ", spec::ModulePath(model_, linear.layer, linear.module), " row ",
                                first + i / k, " holds ", values[static_cast<size_t>(i)], ", which ",
                                View(TensorTypeName(type)), " cannot; the adapter does not fit this base"));
    }
    RETURN_IF_ERROR(sink(bytes.data(), rows * k * TensorTypeBytes(type)));
  }
  return absl::OkStatus();
}

std::optional<TensorToWrite> MergedWeights::Made(const SafetensorsFile& file, const TensorInfo& tensor) {
  if (decoded_.contains(tensor.name)) return std::nullopt;
  TensorToWrite out{tensor.name, tensor.type, tensor.shape, nullptr, {}};
  const auto it = linears_.find(tensor.name);
  const Linear* const linear = it == linears_.end() ? nullptr : &it->second;
  const bool stored_in_codes = linear != nullptr && linear->tensor->quantized != nullptr;
  if (stored_in_codes) {
    const spec::LinearShape shape = spec::ShapeOf(model_, linear->module);
    out.type = TensorType::kBF16;
    out.shape = {shape.n, shape.k};
  }
  if (linear == nullptr || (linear->pair == nullptr && quantized_ == nullptr && !stored_in_codes)) {
    out.pieces = [&file, &tensor](const ByteSink& sink) { return CopyTensor(file, tensor, sink); };
  } else {
    out.pieces = [this, linear, type = out.type](const ByteSink& sink) { return Merge(*linear, type, sink); };
  }
  return out;
}

}  // namespace nibble::engine
