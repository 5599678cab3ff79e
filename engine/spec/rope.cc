#include <cmath>

#include "engine/spec/model_config.h"

namespace nibble::spec {
namespace {

constexpr float kTwoPi = 6.283185307179586f;

// Low frequencies are stretched by `factor`, high ones kept, those between blended.
float StretchLlama3(const ModelConfig& model, float frequency) {
  const float factor = static_cast<float>(model.rope_factor);
  const float low = static_cast<float>(model.rope_low_freq_factor);
  const float high = static_cast<float>(model.rope_high_freq_factor);
  const float original = static_cast<float>(model.rope_original_positions);
  const float wavelength = kTwoPi / frequency;
  if (wavelength > original / low) return frequency / factor;
  if (wavelength < original / high) return frequency;
  const float smooth = (original / wavelength - low) / (high - low);
  return (1.0f - smooth) * frequency / factor + smooth * frequency;
}

void FillTable(const ModelConfig& model, double base, RopeKind kind, int64_t positions, float* table) {
  const int64_t half = model.head_dim / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(model.head_dim);
    const float theta = static_cast<float>(base);
    // std::pow(float, float) in double, rounded once: what a correctly rounded powf gives.
    float frequency = 1.0f / static_cast<float>(std::pow(static_cast<double>(theta),
                                                         static_cast<double>(exponent)));
    if (kind == RopeKind::kLinear) frequency /= static_cast<float>(model.rope_factor);
    if (kind == RopeKind::kLlama3) frequency = StretchLlama3(model, frequency);
    for (int64_t p = 0; p < positions; ++p) {
      const float angle = static_cast<float>(p) * frequency;
      float* entry = table + (p * half + i) * 2;
      entry[0] = static_cast<float>(std::cos(static_cast<double>(angle)));
      entry[1] = static_cast<float>(std::sin(static_cast<double>(angle)));
    }
  }
}

}  // namespace

std::vector<float> RopeTable(const ModelConfig& model, int64_t positions) {
  const int64_t one = positions * (model.head_dim / 2) * 2;
  std::vector<float> tables(static_cast<size_t>(model.RopeTables() * one));
  FillTable(model, model.rope_theta, model.rope, positions, tables.data());
  if (model.RopeTables() > 1) {
    FillTable(model, model.local_rope_theta, RopeKind::kDefault, positions, tables.data() + one);
  }
  return tables;
}

}  // namespace nibble::spec
