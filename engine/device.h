// What an engine process has for its jobs: one device, one frozen base in its memory, its tokenizer,
// and the step region that jobs use in turn.
//
// On the host the base is the mapped cache file itself; a device gets a copy of it in one base region,
// after which the file is unmapped. Opened once; afterwards only the step region changes, between turns.
// One thread drives it.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "engine/model/base_model.h"
#include "engine/model/base_view.h"
#include "engine/region.h"
#include "engine/spec/memory_plan.h"
#include "engine/text/tokenizer.h"
#include "kernels/backend.h"
#include "kernels/kernel_table.h"

namespace nibble::engine {

// "cpu" (the best body), "cpu:<body>", "ref"; "cuda", "cuda:<index>" or "cuda:<index>,fp16" where there
// is one (in tests "cuda-emulated"). `threads` 0 = one per core; of the host's kernels only.
absl::StatusOr<std::unique_ptr<kernels::Backend>> OpenBackend(const std::string& device, int threads);

// Which bits a job gets: "<build>/<backend>/<body>". Equal ids, equal results.
std::string NumericsId(const kernels::KernelTable& table);
// The host's table of this build and machine that gives these bits; null when there is none.
const kernels::KernelTable* TableForNumerics(const std::string& numerics_id);

// Measures what a process costs before it holds any model: of a device what its context and libraries
// take, of the host the process itself.
spec::DeviceProfile MeasureProfile(kernels::Backend& backend);
// Memory of this process that is in RAM now; shared file pages included.
int64_t ResidentBytes();
// DEVICE_FAULT when the device has failed for good; it counts against whoever's turn it was.
absl::Status FaultStatus(const kernels::Backend& backend);

struct DeviceOptions {
  std::string device = "cpu";
  int threads = 0;  // 0 = one per core
  BaseModelOptions base;
};

class Device {
 public:
  // The backend outlives the device.
  static absl::StatusOr<std::unique_ptr<Device>> Open(const DeviceOptions& options,
                                                      kernels::Backend& backend,
                                                      const spec::DeviceProfile& profile);

  kernels::Backend& backend() { return backend_; }
  const kernels::KernelTable& table() const { return backend_.table(); }
  const BaseModel& base() const { return *base_; }
  const BaseView& view() const { return view_; }
  const spec::ModelConfig& model() const { return base_->config(); }
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  const spec::DeviceProfile& profile() const { return profile_; }
  spec::QuantKind quant() const { return quant_; }
  bool double_quant() const { return double_quant_; }

  // Makes the step region exactly this large; its contents are lost.
  absl::Status ResizeStep(int64_t bytes);
  // At most this large; on the host, where what is left keeps its contents.
  void ShrinkStep(int64_t bytes) { step_.Shrink(bytes); }
  const Region& step() const { return step_; }

 private:
  explicit Device(kernels::Backend& backend) : backend_(backend) {}

  absl::Status CopyBaseToDevice();

  kernels::Backend& backend_;
  spec::DeviceProfile profile_;
  spec::QuantKind quant_ = spec::QuantKind::kNF4;
  bool double_quant_ = true;
  std::unique_ptr<BaseModel> base_;
  Region base_region_;  // of a device
  BaseView view_;
  std::optional<Tokenizer> tokenizer_;
  Region step_;
};

}  // namespace nibble::engine
