// Helpers to make metric families by hand. Included by meter*.cc only. Pure.
#pragma once

#include <cmath>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "prometheus/metric_family.h"
#include "server/metrics_table.h"

namespace nibble::server {

using LabelList = std::initializer_list<std::pair<const char*, std::string>>;

// The families of one collection, each made when it gets its first sample.
class Families {
 public:
  // Values that are not finite are left out: comparisons with them are false and alerts go blind.
  void Add(std::string_view name, LabelList labels, double value) {
    if (!std::isfinite(value)) return;
    const MetricRow& row = MetricOf(name);
    prometheus::MetricFamily* family = nullptr;
    for (prometheus::MetricFamily& known : families_) {
      if (known.name == name) family = &known;
    }
    if (!family) {
      family = &families_.emplace_back();
      family->name = std::string(row.name);
      family->help = std::string(row.help);
      family->type = row.type == MetricType::kCounter ? prometheus::MetricType::Counter
                                                      : prometheus::MetricType::Gauge;
    }
    prometheus::ClientMetric& metric = family->metric.emplace_back();
    for (const auto& [label, text] : labels) metric.label.push_back({label, text});
    metric.counter.value = value;
    metric.gauge.value = value;
  }
  std::vector<prometheus::MetricFamily> Take() { return std::move(families_); }

 private:
  std::vector<prometheus::MetricFamily> families_;
};

// CPU, memory, descriptors and threads of this process.
void AddProcess(Families& families);

}  // namespace nibble::server
