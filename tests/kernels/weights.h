// A quantized weight with its arrays, for the checks.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/bf16.h"
#include "kernels/fp16.h"
#include "kernels/nf4.h"
#include "tests/kernels/harness.h"

namespace nibble::kernels::check {

class TestWeight {
 public:
  TestWeight(QuantType type, int64_t n, int64_t k, int64_t block, bool nested, uint64_t seed,
             WeightOrder order = WeightOrder::kFlat) {
    const std::vector<double> values = Normal(n * k, seed, 0.5);
    std::vector<float> floats(values.begin(), values.end());
    view_.type = type;
    view_.n = n;
    view_.k = k;
    view_.block = block;
    data_ = std::make_unique<Guarded>(WeightBytes(type, n * k));
    view_.data = data_->data();
    if (type == QuantType::kF32) {
      for (size_t i = 0; i < floats.size(); ++i) static_cast<float*>(data_->data())[i] = floats[i];
      return;
    }
    if (type == QuantType::kBF16) {
      for (size_t i = 0; i < floats.size(); ++i) static_cast<BF16*>(data_->data())[i] = ToBF16(floats[i]);
      return;
    }
    const int64_t blocks = AbsmaxCount(n * k, block);
    absmax_ = std::make_unique<Guarded>(blocks * 4);
    auto* absmax = static_cast<float*>(absmax_->data());
    QuantizeTensor(floats.data(), n * k, type, block, static_cast<uint8_t*>(data_->data()), absmax,
                   nullptr);
    view_.code_book = CodeBook(type);
    view_.order = order;
    if (order == WeightOrder::kTiles) Move(*data_, WeightBytes(type, block));
    if (!nested) {
      view_.absmax = absmax;
      if (order == WeightOrder::kTiles) Move(*absmax_, 4);
      return;
    }
    codes_ = std::make_unique<Guarded>(blocks);
    nested_ = std::make_unique<Guarded>(NestedCount(blocks) * 4);
    QuantizeAbsmax(absmax, blocks, static_cast<uint8_t*>(codes_->data()),
                   static_cast<float*>(nested_->data()), &view_.offset);
    if (order == WeightOrder::kTiles) Move(*codes_, 1);
    view_.absmax_codes = static_cast<const uint8_t*>(codes_->data());
    view_.nested_absmax = static_cast<const float*>(nested_->data());
    view_.nested_map = SignedDynamicMap();
  }

  const WeightView& view() const { return view_; }

  // The same weight as a table of that act type sees it, for references in wider types.
  std::vector<double> Values(DType act) const {
    const int64_t count = view_.n * view_.k;
    std::vector<float> values(static_cast<size_t>(count));
    DequantizeRange(view_, 0, count, values.data());
    std::vector<double> out(values.begin(), values.end());
    for (size_t i = 0; i < out.size(); ++i) {
      if (act == DType::kBF16) out[i] = static_cast<double>(ToFloat(ToBF16(values[i])));
      if (act == DType::kF16) out[i] = static_cast<double>(ToFloat(ToFP16(values[i])));
    }
    return out;
  }

 private:
  // From the flat order to tiles; `unit` bytes for each block.
  void Move(Guarded& array, int64_t unit) const {
    const int64_t blocks = view_.n * view_.k / view_.block;
    const auto* at = static_cast<const uint8_t*>(array.data());
    const std::vector<uint8_t> flat(at, at + blocks * unit);
    ToTiles(flat.data(), view_.n, view_.k / view_.block, unit, array.data());
  }

  WeightView view_;
  std::unique_ptr<Guarded> data_, absmax_, codes_, nested_;
};

}  // namespace nibble::kernels::check
