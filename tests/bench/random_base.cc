#include "tests/bench/random_base.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <vector>

#include "base/random.h"
#include "base/status.h"
#include "engine/device.h"
#include "engine/spec/base_layout.h"
#include "kernels/nf4.h"

namespace nibble::bench {
namespace {

uint16_t Bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return static_cast<uint16_t>(bits >> 16);
}

void FillBf16(std::byte* at, int64_t bytes, Random& random, float center, float spread) {
  auto* out = reinterpret_cast<uint16_t*>(at);
  for (int64_t i = 0; i < bytes / 2; ++i) {
    out[i] = Bf16(center + spread * static_cast<float>(2 * random.Unit() - 1));
  }
}

void FillBytes(std::byte* at, int64_t bytes, Random& random) {
  auto* out = reinterpret_cast<uint64_t*>(at);
  for (int64_t i = 0; i < bytes / 8; ++i) out[i] = random.Next();
}

// The content of one entry; `spread` is the size of a weight.
void FillEntry(const spec::BaseEntry& entry, std::byte* at, spec::QuantKind quant, float spread,
               Random& random) {
  using spec::BasePart;
  switch (entry.part) {
    case BasePart::kCodeBook:
      std::memcpy(at, kernels::CodeBook(kernels::QuantType::kNF4),
                  static_cast<size_t>(entry.size_bytes));
      return;
    case BasePart::kNestedMap:
      std::memcpy(at, kernels::SignedDynamicMap(), static_cast<size_t>(entry.size_bytes));
      return;
    case BasePart::kOffsets:
    case BasePart::kAbsmax:
    case BasePart::kNestedAbsmax: {
      const float value = entry.part == BasePart::kNestedAbsmax ? spread / 4 : spread;
      auto* out = reinterpret_cast<float*>(at);
      for (int64_t i = 0; i < entry.size_bytes / 4; ++i) out[i] = value;
      return;
    }
    case BasePart::kCodes:
      if (quant == spec::QuantKind::kBF16) {
        FillBf16(at, entry.size_bytes, random, 0, spread);
      } else {
        FillBytes(at, entry.size_bytes, random);
      }
      return;
    case BasePart::kAbsmaxCodes:
      FillBytes(at, entry.size_bytes, random);
      return;
    case BasePart::kEmbedding:
    case BasePart::kHead:
      FillBf16(at, entry.size_bytes, random, 0, 0.04f);
      return;
    default:
      FillBf16(at, entry.size_bytes, random, 1, 0.1f);  // norms
  }
}

// What was filled in flat order, in tiles.
void MoveToTiles(const spec::TileShape& tiles, std::byte* at) {
  const std::vector<std::byte> flat(at, at + tiles.rows * tiles.row_blocks * tiles.unit_bytes);
  kernels::ToTiles(flat.data(), tiles.rows, tiles.row_blocks, tiles.unit_bytes, at);
}

}  // namespace

spec::ModelConfig NamedShape(const std::string& name, int64_t layers) {
  enum Kind { kLlama, kQwen3, kGemma3, kPhi };
  struct Shape {
    int64_t hidden, ffn, layers, heads, kv_heads, vocab;
    bool tied;
    int64_t head_dim = 0;  // 0: hidden / heads
    Kind kind = kLlama;
  };
  static const std::map<std::string, Shape> kShapes = {
      {"demo", {192, 512, 4, 6, 2, 1024, true}},
      {"135m", {576, 1536, 30, 9, 3, 49152, true}},
      {"1.1b", {2048, 5632, 22, 32, 4, 32000, false}},
      {"7b", {4096, 11008, 32, 32, 32, 32000, false}},
      {"13b", {5120, 13824, 40, 40, 40, 32000, false}},
      {"8b", {4096, 14336, 32, 32, 8, 128256, false}},
      {"70b", {8192, 28672, 80, 64, 8, 128256, false}},
      {"qwen3-0.6b", {1024, 3072, 28, 16, 8, 151936, true, 128, kQwen3}},
      {"qwen3-1.7b", {2048, 6144, 28, 16, 8, 151936, true, 128, kQwen3}},
      {"qwen3-4b", {2560, 9728, 36, 32, 8, 151936, true, 128, kQwen3}},
      {"qwen3-8b", {4096, 12288, 36, 32, 8, 151936, false, 128, kQwen3}},
      {"gemma3-270m", {640, 2048, 18, 4, 1, 262144, true, 256, kGemma3}},
      {"gemma3-1b", {1152, 6912, 26, 4, 1, 262144, true, 256, kGemma3}},
      {"phi4-mini", {3072, 8192, 32, 24, 8, 200064, true, 128, kPhi}},
  };
  spec::ModelConfig model;
  const auto found = kShapes.find(name);
  if (found == kShapes.end()) return model;
  const Shape& s = found->second;
  model.model_type = "llama";
  model.hidden_size = s.hidden;
  model.intermediate_size = s.ffn;
  model.layers = layers > 0 ? layers : s.layers;
  model.heads = s.heads;
  model.kv_heads = s.kv_heads;
  model.head_dim = s.head_dim > 0 ? s.head_dim : s.hidden / s.heads;
  model.qk_norm = s.kind == kQwen3 || s.kind == kGemma3;
  model.vocab_size = s.vocab;
  model.max_positions = 4096;
  model.rms_norm_eps = 1e-5;
  model.tie_word_embeddings = s.tied;
  if (s.kind == kPhi) {
    model.fused = true;
    model.rotary_dim = s.head_dim / 4 * 3;
  }
  if (s.kind == kGemma3) {
    model.gelu = model.unit_norms = model.scaled_embedding = model.post_norms = true;
    model.sliding_window = 512;
    model.local_rope_theta = 1e4;
    for (int64_t layer = 1; layer <= model.layers; ++layer) model.slides.push_back(layer % 6 != 0);
  }
  return model;
}

absl::StatusOr<RandomBase> RandomBase::Make(kernels::Backend& backend,
                                            const spec::ModelConfig& model, spec::QuantKind quant,
                                            bool double_quant, uint64_t seed, bool tiles) {
  using spec::BasePart;
  tiles = tiles && backend.is_host();
  const spec::BaseLayout layout = spec::LayoutBase(model, quant, double_quant);
  RandomBase base;
  ASSIGN_OR_RETURN(base.region_, engine::Region::On(backend, layout.file_bytes));
  RETURN_IF_ERROR(base.region_.Map(layout.file_bytes));
  std::byte* const start = base.region_.data();
  Random random(seed);
  const float spread = 1.0f / static_cast<float>(model.hidden_size);
  // Random up to here, then the same again: on the host as on a device, which are held against each other.
  constexpr int64_t kPieceBytes = int64_t{4} << 20;
  std::vector<std::byte> piece(static_cast<size_t>(kPieceBytes));
  for (const spec::BaseEntry& entry : layout.entries) {
    spec::BaseEntry first = entry;
    first.size_bytes = std::min(kPieceBytes, entry.size_bytes);
    FillEntry(first, piece.data(), quant, spread * 4, random);
    for (int64_t at = 0; at < entry.size_bytes; at += kPieceBytes) {
      std::byte* const to = start + entry.offset + at;
      const int64_t bytes = std::min(kPieceBytes, entry.size_bytes - at);
      if (backend.is_host())
        std::memcpy(to, piece.data(), static_cast<size_t>(bytes));
      else
        backend.CopyIn(kernels::Lane::kCompute, to, piece.data(), bytes);
    }
    if (tiles && entry.tiles.rows > 0) MoveToTiles(entry.tiles, start + entry.offset);
    if (!backend.Synchronize()) return engine::FaultStatus(backend);
  }
  const auto find = [&](BasePart part, int64_t layer = -1,
                        spec::Module module = spec::Module::kQ) -> const std::byte* {
    const spec::BaseEntry* entry = layout.Find(part, static_cast<int32_t>(layer), module);
    return entry == nullptr ? nullptr : start + entry->offset;
  };
  const auto param = [&](const std::byte* at) {
    return kernels::ParamView{at, kernels::DType::kBF16};
  };
  base.view_.layers.resize(static_cast<size_t>(model.layers));
  const bool has_offsets = find(BasePart::kOffsets) != nullptr;
  for (int64_t layer = 0; layer < model.layers; ++layer) {
    engine::BaseView::Layer& view = base.view_.layers[static_cast<size_t>(layer)];
    for (const spec::Module module : spec::ModulesOf(model)) {
      const spec::LinearShape shape = spec::ShapeOf(model, module);
      kernels::WeightView& w = view.linear[static_cast<int>(module)];
      w.type =
          quant == spec::QuantKind::kBF16 ? kernels::QuantType::kBF16 : kernels::QuantType::kNF4;
      if (tiles && kernels::SuitsTiles(w.type, shape.k, w.block)) w.order = kernels::WeightOrder::kTiles;
      w.n = shape.n;
      w.k = shape.k;
      w.data = find(BasePart::kCodes, layer, module);
      w.absmax = reinterpret_cast<const float*>(find(BasePart::kAbsmax, layer, module));
      w.absmax_codes =
          reinterpret_cast<const uint8_t*>(find(BasePart::kAbsmaxCodes, layer, module));
      w.nested_absmax =
          reinterpret_cast<const float*>(find(BasePart::kNestedAbsmax, layer, module));
      w.nested_map = reinterpret_cast<const float*>(find(BasePart::kNestedMap));
      w.code_book = reinterpret_cast<const float*>(find(BasePart::kCodeBook));
      if (has_offsets) w.offset = spread * 4;  // as FillEntry wrote them
    }
    view.input_norm = param(find(BasePart::kInputNorm, layer));
    view.post_norm = param(find(BasePart::kPostNorm, layer));
    if (model.qk_norm) view.q_norm = param(find(BasePart::kQueryNorm, layer));
    if (model.qk_norm) view.k_norm = param(find(BasePart::kKeyNorm, layer));
    if (model.post_norms) view.attention_norm = param(find(BasePart::kAttentionNorm, layer));
    if (model.post_norms) view.mlp_norm = param(find(BasePart::kMlpNorm, layer));
  }
  base.view_.final_norm = param(find(BasePart::kFinalNorm));
  base.view_.embedding = param(find(BasePart::kEmbedding));
  const std::byte* head = find(BasePart::kHead);
  base.view_.head = head == nullptr ? base.view_.embedding : param(head);
  return base;
}

}  // namespace nibble::bench
