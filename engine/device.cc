#include "engine/device.h"

#include <fcntl.h>
#include <malloc.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <span>
#include <thread>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/log.h"
#include "base/status.h"
#include "engine/spec/compile_plan.h"
#include "kernels/parallel.h"
#include "kernels/tables.h"

namespace nibble::engine {
namespace {

// Room for what is set up on first use: thread stacks, buffers of the C library, code not yet
// touched.
constexpr int64_t kLateBytes = int64_t{8} << 20;
// Address space, not memory. The thread sanitizer leaves 1.5 TiB of it for all that is ever mapped.
#if defined(__SANITIZE_THREAD__)
constexpr int64_t kStepCapacityBytes = int64_t{1} << 36;
#else
constexpr int64_t kStepCapacityBytes = int64_t{1} << 40;
#endif

// A field of /proc/meminfo in bytes.
int64_t MemInfoBytes(const char* field) {
  std::FILE* file = std::fopen("/proc/meminfo", "re");
  if (file == nullptr) return 0;
  char line[256];
  int64_t bytes = 0;
  const size_t length = std::strlen(field);
  while (std::fgets(line, sizeof line, file) != nullptr) {
    long long kilobytes = 0;
    if (std::strncmp(line, field, length) == 0 &&
        std::sscanf(line + length, ": %lld", &kilobytes) == 1) {
      bytes = kilobytes * 1024;
    }
  }
  std::fclose(file);
  return bytes;
}

// The host's table of that name.
absl::StatusOr<const kernels::KernelTable*> FindTable(const std::string& device) {
  if (device == "cpu") {
    // One of more than this machine has is no mistake: it is meant for others, too.
    const char* asked = std::getenv("NIBBLE_CPU_ISA");
    if (asked == nullptr || *asked == '\0' || kernels::IsCpuBody(asked)) return &kernels::CpuTable();
    return Error(Reason::kUnsupportedOption,
                 absl::StrCat("NIBBLE_CPU_ISA is ", asked, ", for which there are no kernels; it may be ",
                              "amx, avx512_bf16, avx512_vnni, avx512, avx2 or portable, or not be set"));
  }
  if (device == "ref") return &kernels::RefTable();
  if (device.starts_with("cpu:")) {
    const kernels::KernelTable* table = kernels::CpuTableFor(device.substr(4));
    if (table != nullptr) return table;
  }
  const std::string cuda = kernels::CudaName();
  std::string bodies;
  for (const std::string_view body : kernels::CpuBodies()) bodies.append(" cpu:").append(body);
  return Error(
      Reason::kUnsupportedOption,
      absl::StrCat("--device ", device, " is not there; this build and machine have: cpu", bodies, " ref",
                   cuda.empty() ? "" : absl::StrCat(" ", cuda, ":<index>")));
}

// "<index>", "<index>,fp16" or nothing, behind the backend's name.
absl::StatusOr<kernels::CudaOptions> CudaOptionsFrom(const std::string& device, std::string rest) {
  kernels::CudaOptions options;
  if (rest.empty()) return options;
  const auto wrong = [&] {
    return Error(Reason::kUnsupportedOption,
                 absl::StrCat("--device ", device, " is none; use ", kernels::CudaName(),
                              ":<index>, with ,fp16 behind it for 16-bit floats"));
  };
  if (rest.ends_with(",fp16")) {
    options.fp16 = true;
    rest.resize(rest.size() - 5);
    if (rest.empty()) return options;
  }
  if (!rest.starts_with(":") || !absl::SimpleAtoi(rest.substr(1), &options.index) ||
      options.index < 0) {
    return wrong();
  }
  return options;
}

}  // namespace

absl::StatusOr<std::unique_ptr<kernels::Backend>> OpenBackend(const std::string& device,
                                                              int threads) {
  const std::string cuda = kernels::CudaName();
  if (device == "cuda" || device.starts_with("cuda:") ||
      (!cuda.empty() && device.starts_with(cuda))) {
    if (cuda.empty() || !device.starts_with(cuda)) {
      std::string why;
      kernels::CudaDevices(&why);
      return Error(Reason::kUnsupportedOption, absl::StrCat("--device ", device, ": ", why));
    }
    ASSIGN_OR_RETURN(const kernels::CudaOptions options,
                     CudaOptionsFrom(device, device.substr(cuda.size())));
    std::string why;
    std::unique_ptr<kernels::Backend> backend = kernels::OpenCuda(options, &why);
    if (backend == nullptr) {
      return Error(Reason::kDeviceFault, absl::StrCat("--device ", device, ": ", why));
    }
    return backend;
  }
  ASSIGN_OR_RETURN(const kernels::KernelTable* table, FindTable(device));
  const int wanted =
      threads > 0 ? threads : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  std::unique_ptr<kernels::Backend> backend = kernels::MakeHostBackend(*table, wanted);
  const int got = kernels::PoolThreads(backend->context().pool);
  if (got < wanted) LogWarning("device.fewer_threads", {{"wanted", wanted}, {"got", got}});
  return backend;
}

std::string NumericsId(const kernels::KernelTable& table) {
  return absl::StrCat(NIBBLE_VERSION, "/", table.name, "/", table.body);
}

const kernels::KernelTable* TableForNumerics(const std::string& numerics_id) {
  if (numerics_id == NumericsId(kernels::RefTable())) return &kernels::RefTable();
  for (const std::string_view body : kernels::CpuBodies()) {
    const kernels::KernelTable* table = kernels::CpuTableFor(body);
    if (table != nullptr && numerics_id == NumericsId(*table)) return table;
  }
  return nullptr;
}

int64_t ResidentBytes() {
  // Not through stdio: this is read between turns and should cost nothing.
  const int fd = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return 0;
  char text[128];
  const ssize_t size = read(fd, text, sizeof text - 1);
  close(fd);
  if (size <= 0) return 0;
  text[size] = '\0';
  long long total = 0, resident = 0;
  if (std::sscanf(text, "%lld %lld", &total, &resident) != 2) return 0;
  return resident * sysconf(_SC_PAGESIZE);
}

spec::DeviceProfile MeasureProfile(kernels::Backend& backend) {
  const kernels::KernelTable& table = backend.table();
  spec::DeviceProfile profile;
  profile.backend = table.name;
  profile.body = table.body;
  profile.build = NIBBLE_VERSION;
  profile.threads = kernels::PoolThreads(backend.context().pool);
  profile.act_bytes = static_cast<int32_t>(kernels::DTypeBytes(table.act));
  if (backend.is_host()) {
    profile.fixed_bytes = ResidentBytes() + kLateBytes;
    profile.capacity_bytes =
        std::max<int64_t>(0, MemInfoBytes("MemAvailable") - (int64_t{1} << 30));
  } else {
    profile.fixed_bytes = backend.fixed_bytes();
    profile.converts_head = table.act != kernels::DType::kBF16;  // the base's own type
    profile.capacity_bytes =
        backend.fixed_bytes() + std::max<int64_t>(0, backend.free_bytes() - backend.late_bytes());
  }
  return profile;
}

absl::Status FaultStatus(const kernels::Backend& backend) {
  if (backend.fault() != kernels::Fault::kDevice) return absl::OkStatus();
  return Error(Reason::kDeviceFault, absl::StrCat("the device failed: ", backend.error()));
}

absl::StatusOr<std::unique_ptr<Device>> Device::Open(const DeviceOptions& options,
                                                     kernels::Backend& backend,
                                                     const spec::DeviceProfile& profile) {
  std::unique_ptr<Device> device(new Device(backend));
  device->profile_ = profile;
  device->quant_ = options.base.quant;
  device->double_quant_ = options.base.double_quant;
  BaseModelOptions base = options.base;
  base.threads = std::max(1, backend.is_host() ? profile.threads
                                               : static_cast<int>(std::thread::hardware_concurrency()));
  base.backend = &backend;
  base.takes = [&](const spec::ModelConfig& model) { return spec::CheckWidths(model, profile); };
  // Reading tokenizer.json takes a few times what stays of it. So it comes first, where the base will be, and
  // what it took goes back to the system.
  ASSIGN_OR_RETURN(device->tokenizer_, Tokenizer::Load(options.base.model_dir));
  malloc_trim(0);
  ASSIGN_OR_RETURN(device->base_, BaseModel::Open(base));
  device->view_ = device->base_->view();
  if (!backend.is_host()) RETURN_IF_ERROR(device->CopyBaseToDevice());
  ASSIGN_OR_RETURN(device->step_, Region::On(backend, kStepCapacityBytes));
  return device;
}

absl::Status Device::CopyBaseToDevice() {
  const std::span<const std::byte> file = base_->file();
  CHECK(!file.empty());
  ASSIGN_OR_RETURN(base_region_, Region::On(backend_, base_->bytes()));
  RETURN_IF_ERROR(base_region_.Map(base_->bytes()));
  // Two pinned pieces take turns: while one travels the other is read from the file.
  constexpr int64_t kPiece = int64_t{16} << 20;
  auto* const pinned = static_cast<std::byte*>(backend_.AllocatePinned(2 * kPiece));
  if (pinned == nullptr) {
    return Error(Reason::kOutOfMemory, "the host has no memory left for page-locked buffers");
  }
  const auto size = static_cast<int64_t>(file.size());
  for (int64_t at = 0, turn = 0; at < size; at += kPiece, ++turn) {
    std::byte* const piece = pinned + turn % 2 * kPiece;
    const int64_t bytes = std::min(kPiece, size - at);
    base_->CopyFlat(at, bytes, piece);
    backend_.Synchronize();  // the other piece has arrived
    backend_.CopyIn(kernels::Lane::kCompute, base_region_.data() + at, piece, bytes);
  }
  backend_.Synchronize();
  backend_.ReleasePinned(pinned);
  RETURN_IF_ERROR(FaultStatus(backend_));
  view_ = MovedView(view_, file.data(), base_region_.data());
  for (BaseView::Layer& layer : view_.layers) {
    for (kernels::WeightView& w : layer.linear) w.order = kernels::WeightOrder::kFlat;
  }
  base_->Unmap();
  return absl::OkStatus();
}

absl::Status Device::ResizeStep(int64_t bytes) {
  if (bytes == step_.mapped_bytes()) return absl::OkStatus();
  if (bytes > step_.capacity_bytes()) {
    return Error(Reason::kExceedsDeviceMemory,
                 absl::StrCat("a step region of ", bytes, " bytes is too large"));
  }
  return step_.Map(bytes);
}

}  // namespace nibble::engine
