#include "engine/spec/memory_plan.h"

#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"

namespace nibble::spec {

std::string_view CategoryName(Category category) {
  constexpr std::string_view kNames[kCategoryCount] = {
      "base_codes", "base_scales", "base_unquantized", "adapters",
      "gradients",  "optimizer",   "activations",      "workspace"};
  return kNames[static_cast<int>(category)];
}

std::string MemoryPlanToJson(const MemoryPlan& plan) {
  nlohmann::json categories = nlohmann::json::object();
  for (int i = 0; i < kCategoryCount; ++i) {
    categories[std::string(CategoryName(static_cast<Category>(i)))] = plan.category_bytes[i];
  }
  const nlohmann::json object = {{"base_bytes", plan.base_bytes},
                                 {"persistent_bytes", plan.persistent_bytes},
                                 {"step_bytes", plan.step_bytes},
                                 {"fixed_bytes", plan.fixed_bytes},
                                 {"host_bytes", plan.host_bytes},
                                 {"pinned_bytes", plan.pinned_bytes},
                                 {"total_bytes", plan.TotalBytes()},
                                 {"lower_bound_bytes", plan.lower_bound_bytes},
                                 {"peak_phase", plan.peak_phase},
                                 {"categories", categories}};
  return object.dump();
}

std::string MemoryPlanToText(const MemoryPlan& plan) {
  const auto line = [](std::string_view name, int64_t bytes) {
    return absl::StrFormat("  %-18s %12.3f MB\n", absl::string_view(name.data(), name.size()),
                           static_cast<double>(bytes) / 1e6);
  };
  std::string text;
  int64_t named = plan.fixed_bytes + (plan.device ? 0 : plan.host_bytes);
  for (int i = 0; i < kCategoryCount; ++i) {
    text += line(CategoryName(static_cast<Category>(i)), plan.category_bytes[i]);
    named += plan.category_bytes[i];
  }
  text += line(plan.device ? "context, libraries" : "process", plan.fixed_bytes);
  if (!plan.device) text += line("host", plan.host_bytes);
  text += line("waste", plan.TotalBytes() - named);
  text += line("total", plan.TotalBytes());
  text += line("lower bound", plan.lower_bound_bytes);
  if (plan.device) text += line("of the host", plan.host_bytes);
  if (plan.device) text += line("page-locked", plan.pinned_bytes);
  return text + "  peak in " + plan.peak_phase + "\n";
}

}  // namespace nibble::spec
