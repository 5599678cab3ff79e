#include "engine/spec/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace nibble::spec {
namespace {

constexpr double kPi = std::numbers::pi;

// 1 / wavelength of each pair, before any stretching: base^(2i / width), fp32.
std::vector<float> Powers(double base, int64_t width) {
  std::vector<float> powers;
  for (int64_t i = 0; i < width / 2; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(width);
    // In double, rounded once: what a correctly rounded powf gives.
    powers.push_back(static_cast<float>(
        std::pow(static_cast<double>(static_cast<float>(base)), static_cast<double>(exponent))));
  }
  return powers;
}

// Low frequencies are stretched by `factor`, high ones kept, those between blended.
float StretchLlama3(const ModelConfig& model, float frequency) {
  const float factor = static_cast<float>(model.rope_factor);
  const float low = static_cast<float>(model.rope_low_freq_factor);
  const float high = static_cast<float>(model.rope_high_freq_factor);
  const float original = static_cast<float>(model.rope_original_positions);
  const float wavelength = static_cast<float>(2 * kPi) / frequency;
  if (wavelength > original / low) return frequency / factor;
  if (wavelength < original / high) return frequency;
  const float smooth = (original / wavelength - low) / (high - low);
  return (1.0f - smooth) * frequency / factor + smooth * frequency;
}

// Pairs before the first of `low` to `high` keep their frequency, those behind the last are stretched by the
// factor, those between are mixed.
struct Ramp {
  float low = 0, width = 1;
  float At(int64_t pair) const { return std::clamp((static_cast<float>(pair) - low) / width, 0.0f, 1.0f); }
};

Ramp YarnRamp(const ModelConfig& model) {
  const auto width = static_cast<double>(model.RotaryWidth());
  // Which pair turns so many times within the original positions.
  const auto pair_of = [&](double turns) {
    return width * std::log(static_cast<double>(model.rope_original_positions) / (turns * 2 * kPi)) /
           (2 * std::log(model.rope_theta));
  };
  double low = pair_of(model.rope_beta_fast), high = pair_of(model.rope_beta_slow);
  if (model.rope_truncate) low = std::floor(low), high = std::ceil(high);
  low = std::max(low, 0.0), high = std::min(high, width - 1);
  if (low == high) high += 0.001;
  return {static_cast<float>(low), static_cast<float>(high - low)};
}

std::vector<float> Frequencies(const ModelConfig& model, double base, RopeKind kind, bool is_long) {
  std::vector<float> all = Powers(base, model.RotaryWidth());
  const float factor = static_cast<float>(model.rope_factor);
  const Ramp ramp = kind == RopeKind::kYarn ? YarnRamp(model) : Ramp();
  for (size_t i = 0; i < all.size(); ++i) {
    const float power = all[i], frequency = 1.0f / power;
    all[i] = frequency;
    if (kind == RopeKind::kLinear) all[i] = frequency / factor;
    if (kind == RopeKind::kLlama3) all[i] = StretchLlama3(model, frequency);
    if (kind == RopeKind::kYarn) {
      const float kept = 1.0f - ramp.At(static_cast<int64_t>(i));
      all[i] = 1.0f / (factor * power) * (1.0f - kept) + frequency * kept;
    }
    if (kind == RopeKind::kLong) {
      const double by = (is_long ? model.rope_long_factors : model.rope_short_factors)[i];
      all[i] = 1.0f / (static_cast<float>(by) * power);
    }
  }
  return all;
}

// Rows for positions 0 .. rows - 1; returns the end.
float* Fill(const std::vector<float>& frequencies, double scale, int64_t rows, float* to) {
  const float by = static_cast<float>(scale);
  for (int64_t p = 0; p < rows; ++p) {
    for (const float frequency : frequencies) {
      const float angle = static_cast<float>(p) * frequency;
      *to++ = static_cast<float>(std::cos(static_cast<double>(angle))) * by;
      *to++ = static_cast<float>(std::sin(static_cast<double>(angle))) * by;
    }
  }
  return to;
}

bool HasLongRows(const ModelConfig& model, int64_t positions) {
  return model.rope == RopeKind::kLong && positions > model.rope_original_positions;
}

int64_t Rows(const ModelConfig& model, int64_t positions) {
  return positions + (HasLongRows(model, positions) ? model.rope_original_positions : 0);
}

}  // namespace

std::vector<float> RopeFrequencies(const ModelConfig& model, int64_t tokens) {
  return Frequencies(model, model.rope_theta, model.rope, HasLongRows(model, tokens));
}

int64_t RopeTableElements(const ModelConfig& model, int64_t positions) {
  return model.RopeTables() * Rows(model, positions) * model.RotaryWidth();
}

int64_t RopeTableBegin(const ModelConfig& model, int64_t layer, int64_t positions) {
  return model.RopeTableOf(layer) * Rows(model, positions) * model.RotaryWidth();
}

int32_t RopeFirstRow(const ModelConfig& model, int64_t tokens) {
  return HasLongRows(model, tokens) ? static_cast<int32_t>(model.rope_original_positions) : 0;
}

std::vector<float> RopeTable(const ModelConfig& model, int64_t positions) {
  std::vector<float> table(static_cast<size_t>(RopeTableElements(model, positions)));
  float* to = table.data();
  if (HasLongRows(model, positions))
    to = Fill(RopeFrequencies(model, 0), model.rope_scale, model.rope_original_positions, to);
  to = Fill(RopeFrequencies(model, positions), model.rope_scale, positions, to);
  if (model.RopeTables() > 1)
    Fill(Frequencies(model, model.local_rope_theta, RopeKind::kDefault, false), 1, positions, to);
  return table;
}

}  // namespace nibble::spec
