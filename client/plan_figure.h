// The figure of a memory plan: what is held at every operation of one step, by category, with the peak.
//
// Pure: a plan in full (PlanJobRequest.layout) in, text or SVG out. Time is counted in operations, each
// as wide as the next, so widths say nothing about seconds.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "client/draw.h"
#include "nibble/v1/job.pb.h"

namespace nibble::client {

// From the bottom of the stack to its top. The first six are there all the time.
enum class Layer {
  kProcess,  // and host memory
  kBase,
  kAdapters,
  kGradients,
  kOptimizer,
  kTables,  // positions' sines and cosines, alignment
  kActivations,
  kWorkspace,
};
inline constexpr int kLayerCount = 8;

struct PlanCurve {
  struct Span {
    std::string name;  // "forward", "loss", "backward", "optimizer", "evaluation"
    int32_t first = 0;
    int32_t last = 0;  // inclusive
  };
  std::array<int64_t, kLayerCount> constant_bytes{};  // kActivations and kWorkspace: 0
  std::vector<int64_t> activation_bytes;              // by operation
  std::vector<int64_t> workspace_bytes;
  std::vector<Span> spans;
  int32_t peak = 0;  // operation: the first with the most bytes
  std::string peak_phase;
  int64_t planned_bytes = 0;  // what is reserved; never below the curve

  int64_t ConstantBytes() const;
  int64_t BytesAt(int32_t operation) const;  // all layers
  int64_t LayerBytes(Layer layer, int32_t operation) const;
};
PlanCurve CurveOf(const v1::MemoryLayout& layout);

// At most `width` cells and about `height` + 6 lines. Empty when there are no operations.
std::vector<std::string> PlotPlan(const PlanCurve& curve, int width, int height, const Style& style);

// A whole SVG document: the stack above, where every buffer lies in the step region below.
std::string PlanSvg(const v1::MemoryLayout& layout, const std::string& title,
                    const std::string& subtitle);

}  // namespace nibble::client
