// What an engine process has for its jobs: one device's kernels, one frozen base, its tokenizer,
// and the step region that jobs use in turn.
//
// Opened once; afterwards only the step region changes, between turns. One thread drives it.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "engine/base_model.h"
#include "engine/base_view.h"
#include "engine/region.h"
#include "engine/spec/memory_plan.h"
#include "engine/tokenizer.h"
#include "kernels/kernel_table.h"
#include "kernels/parallel.h"

namespace nibble::engine {

// "cpu" (the best body), "cpu:<body>" or "ref".
absl::StatusOr<const kernels::KernelTable*> FindTable(const std::string& device);

// Which bits a job gets: "<build>/<backend>/<body>". Equal ids, equal results.
std::string NumericsId(const kernels::KernelTable& table);
// The table of this build and machine that gives these bits; null when there is none.
const kernels::KernelTable* TableForNumerics(const std::string& numerics_id);

// Measures what a process costs before it holds any model. `threads` 0 = all.
spec::DeviceProfile MeasureProfile(const kernels::KernelTable& table, int threads);
// Memory of this process that is in RAM now; shared file pages included.
int64_t ResidentBytes();

struct DeviceOptions {
  std::string device = "cpu";
  int threads = 0;  // 0 = one per core
  BaseModelOptions base;
};

class Device {
 public:
  static absl::StatusOr<std::unique_ptr<Device>> Open(const DeviceOptions& options,
                                                      const spec::DeviceProfile& profile);

  const kernels::KernelTable& table() const { return *table_; }
  const BaseModel& base() const { return *base_; }
  const BaseView& view() const { return view_; }
  const spec::ModelConfig& model() const { return base_->config(); }
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  const spec::DeviceProfile& profile() const { return profile_; }
  spec::QuantKind quant() const { return quant_; }
  bool double_quant() const { return double_quant_; }
  kernels::Context& context() { return context_; }

  // Makes the step region exactly this large; its contents are lost.
  absl::Status ResizeStep(int64_t bytes);
  const Region& step() const { return step_; }

 private:
  Device(const kernels::KernelTable& table, int threads) : table_(&table), pool_(threads) {
    context_.pool = &pool_;
  }

  const kernels::KernelTable* table_;
  kernels::ThreadPool pool_;
  kernels::Context context_;
  spec::DeviceProfile profile_;
  spec::QuantKind quant_ = spec::QuantKind::kNF4;
  bool double_quant_ = true;
  std::unique_ptr<BaseModel> base_;
  BaseView view_;
  std::optional<Tokenizer> tokenizer_;
  Region step_;
};

}  // namespace nibble::engine
