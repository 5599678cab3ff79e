// The cuda backend: plain allocations, three streams, and the tables of cuda.h. See kernels/backend.h.
//
// What context, code and libraries cost is the device's used memory (as the driver's management library
// tells it) before and after all of them were set up and used once, and kLateBytes for code that the driver
// loads at its first launch. Where that library is missing it is kUnmeasuredBytes.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <string>
#include <utility>

#include "kernels/backend.h"
#include "kernels/check.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/nvml.h"
#include "kernels/cuda/quantize.h"

namespace nibble::kernels {

// An instantiated graph; its launches happen in the order in which they were captured.
struct Recording {
  cudaGraphExec_t graph = nullptr;
  int64_t bytes = 0;
};

namespace {

constexpr Encoders kEncoders = {.quantize = cuda::Quantize, .quantize_absmax = cuda::QuantizeAbsmax};

constexpr int64_t kLateBytes = int64_t{48} << 20;
constexpr int64_t kUnmeasuredBytes = int64_t{768} << 20;
// Of ordinary memory that is copied in: up to this by way of page-locked memory of our own, so much in all.
constexpr int64_t kSmallBytes = int64_t{64} << 10, kSmallsBytes = 4 * kSmallBytes;
constexpr int kLanes = 3;

std::string Uuid(const cudaUUID_t& uuid) {
  std::string text = "GPU-";
  for (int i = 0; i < 16; ++i) {
    char hex[3];
    std::snprintf(hex, sizeof hex, "%02x", static_cast<unsigned char>(uuid.bytes[i]));
    text += hex;
    if (i == 3 || i == 5 || i == 7 || i == 9) text += '-';
  }
  return text;
}

std::string Text(cudaError_t error) {
  return std::string(cudaGetErrorName(error)) + ": " + cudaGetErrorString(error);
}

class CudaBackend final : public Backend {
 public:
  CudaBackend(const KernelTable& table, std::string uuid)
      : table_(table), uuid_(std::move(uuid)), body_(table.body) {}
  ~CudaBackend() override {
    if (fault_ == Fault::kDevice) return;  // nothing of it can be given back
    cudaDeviceSynchronize();
    CloseCudaLibraries(&context_);
    for (cudaEvent_t event : events_) {
      if (event != nullptr) cudaEventDestroy(event);
    }
    for (cudaStream_t stream : streams_) {
      if (stream != nullptr) cudaStreamDestroy(stream);
    }
    for (void* event : {ahead_.compute_event, ahead_.ahead_event}) {
      if (event != nullptr) cudaEventDestroy(static_cast<cudaEvent_t>(event));
    }
    if (ahead_.stream != nullptr) cudaStreamDestroy(static_cast<cudaStream_t>(ahead_.stream));
    if (smalls_ != nullptr) cudaFreeHost(smalls_);
  }

  // Streams, libraries, and what they and the context cost.
  bool SetUp(int64_t used_before_bytes, CudaProducts products) {
    for (int i = 0; i < kLanes; ++i) {
      Check(cudaStreamCreateWithFlags(&streams_[i], cudaStreamNonBlocking));
      Check(cudaEventCreateWithFlags(&events_[i], cudaEventDisableTiming));
    }
    context_.stream = streams_[0];
    cudaStream_t beside = nullptr;
    Check(cudaStreamCreateWithFlags(&beside, cudaStreamNonBlocking));
    ahead_.stream = beside;
    for (void** event : {&ahead_.compute_event, &ahead_.ahead_event}) {
      cudaEvent_t made = nullptr;
      Check(cudaEventCreateWithFlags(&made, cudaEventDisableTiming));
      *event = made;
    }
    Check(cudaHostAlloc(&smalls_, static_cast<size_t>(kSmallsBytes), cudaHostAllocDefault));
    // Whose products they are is part of the numerics.
    std::string missing;
    const int64_t version = OpenCudaLibraries(&context_, table_.act, products, &missing);
    if (products == CudaProducts::kTold && version == 0) std::fprintf(stderr, "%s\n", missing.c_str());
    body_ += version != 0 ? " cublasLt " + std::to_string(version) : " own products";
    table_.body = body_.c_str();
    void* first = Allocate(1 << 20);  // the allocator takes its first piece
    if (first != nullptr) Release(first);
    if (!Synchronize()) return false;
    int64_t unused = 0, used_bytes = 0;
    const bool measured = used_before_bytes >= 0 && nvml_.Memory(uuid_, &unused, &used_bytes);
    fixed_bytes_ = measured ? std::max<int64_t>(0, used_bytes - used_before_bytes) + kLateBytes
                            : kUnmeasuredBytes;
    nvml_.WatchXids(uuid_);
    return true;
  }

  const KernelTable& table() const override { return table_; }
  Context& context() override { return context_; }
  bool is_host() const override { return false; }

  void* Allocate(int64_t bytes) override {
    KERNEL_CHECK(bytes > 0);
    if (fault() == Fault::kDevice) return nullptr;
    void* device = nullptr;
    const cudaError_t error = cudaMalloc(&device, static_cast<size_t>(bytes));
    if (error == cudaErrorMemoryAllocation) {
      cudaGetLastError();  // not a lasting one
      fault_ = Fault::kOutOfMemory;
      error_ = Text(error);
      return nullptr;
    }
    if (!Check(error)) return nullptr;
    fault_ = Fault::kNone;
    return device;
  }
  void Release(void* device) override {
    if (fault() != Fault::kDevice) Check(cudaFree(device));
  }
  void* AllocatePinned(int64_t bytes) override {
    void* host = nullptr;
    if (fault() == Fault::kDevice) return nullptr;
    const cudaError_t error = cudaHostAlloc(&host, static_cast<size_t>(bytes), cudaHostAllocDefault);
    if (error == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      return nullptr;
    }
    return Check(error) ? host : nullptr;
  }
  void ReleasePinned(void* host) override {
    if (fault() != Fault::kDevice) Check(cudaFreeHost(host));
  }

  // What is not page-locked has been read on return. Of an asynchronous copy CUDA says that nowhere: a driver
  // may have to put it aside first, but a device that reads such memory itself (HMM) may do so later. Nothing
  // that is large is copied while a step runs.
  void CopyIn(Lane lane, void* device, const void* host, int64_t bytes) override {
    if (fault() == Fault::kDevice || bytes == 0) return;
    cudaPointerAttributes of{};
    if (!Check(cudaPointerGetAttributes(&of, host))) return;
    const bool ordinary = of.type == cudaMemoryTypeUnregistered, small = bytes <= kSmallBytes;
    Copy(lane, device, ordinary && small ? PutAside(host, bytes) : host, bytes, cudaMemcpyHostToDevice);
    if (ordinary && !small) Check(cudaStreamSynchronize(streams_[static_cast<int>(lane)]));
  }
  void CopyOut(Lane lane, void* host, const void* device, int64_t bytes) override {
    Copy(lane, host, device, bytes, cudaMemcpyDeviceToHost);
  }
  void CopyWithin(Lane lane, void* to, const void* from, int64_t bytes) override {
    Copy(lane, to, from, bytes, cudaMemcpyDeviceToDevice);
  }
  void Fill(void* device, uint8_t byte, int64_t bytes) override {
    if (fault() == Fault::kDevice || bytes == 0) return;
    Check(cudaMemsetAsync(device, byte, static_cast<size_t>(bytes), streams_[0]));
  }
  void Wait(Lane waiting, Lane awaited) override {
    if (fault() == Fault::kDevice) return;
    const int from = static_cast<int>(awaited);
    if (Check(cudaEventRecord(events_[from], streams_[from]))) {
      Check(cudaStreamWaitEvent(streams_[static_cast<int>(waiting)], events_[from], 0));
    }
  }
  bool Synchronize() override {
    if (fault() == Fault::kDevice) return false;
    for (cudaStream_t stream : streams_) Check(cudaStreamSynchronize(stream));
    // A step that was given up may have left a panel on its way.
    Check(cudaStreamSynchronize(static_cast<cudaStream_t>(ahead_.stream)));
    if (fault() == Fault::kDevice) return false;
    smalls_used_ = 0;
    return true;
  }

  Fault fault() const override { return context_.error != nullptr ? Fault::kDevice : fault_; }
  const char* error() const override {
    if (fault() == Fault::kNone) return nullptr;
    return error_.empty() ? context_.error : error_.c_str();
  }
  int64_t fixed_bytes() const override { return fixed_bytes_; }
  int64_t late_bytes() const override { return kLateBytes; }
  int64_t free_bytes() const override {
    size_t free = 0, total = 0;
    if (fault() == Fault::kDevice || cudaMemGetInfo(&free, &total) != cudaSuccess) return -1;
    return static_cast<int64_t>(free);
  }

  DecodeAhead* ahead() override { return &ahead_; }
  const Encoders* encoders() const override { return &kEncoders; }

  bool BeginRecording() override {
    if (fault() == Fault::kDevice) return false;
    if (cudaStreamBeginCapture(streams_[0], cudaStreamCaptureModeRelaxed) == cudaSuccess) return true;
    cudaGetLastError();  // else the next launch would find it
    return false;
  }
  Recording* EndRecording(int64_t most_bytes) override {
    cudaGraph_t graph = nullptr;
    cudaError_t error = cudaStreamEndCapture(streams_[0], &graph);
    if (error == cudaSuccess && context_.error != nullptr) error = cudaErrorStreamCaptureInvalidated;
    const int64_t free_before_bytes = free_bytes();
    cudaGraphExec_t instance = nullptr;
    if (error == cudaSuccess) error = cudaGraphInstantiate(&instance, graph, 0);
    if (graph != nullptr) cudaGraphDestroy(graph);
    // Its device memory is taken now, not at the first launch.
    if (error == cudaSuccess) error = cudaGraphUpload(instance, streams_[0]);
    // The driver does not say how much one takes. Who else takes or gives back memory in this moment counts.
    const int64_t bytes = std::max<int64_t>(0, free_before_bytes - free_bytes());
    if (error == cudaSuccess && bytes <= most_bytes) return new Recording{instance, bytes};
    // What cannot be captured is no fault of the device; a fault shows again when the ops are queued.
    if (error == cudaSuccess) cudaStreamSynchronize(streams_[0]);  // it is on its way there
    if (instance != nullptr) cudaGraphExecDestroy(instance);
    cudaGetLastError();
    context_.error = nullptr;
    return nullptr;
  }
  int64_t RecordingBytes(const Recording* recording) const override { return recording->bytes; }
  void Replay(Recording* recording) override {
    if (fault() != Fault::kDevice) Check(cudaGraphLaunch(recording->graph, streams_[0]));
  }
  void ReleaseRecording(Recording* recording) override {
    if (fault() != Fault::kDevice) cudaGraphExecDestroy(recording->graph);
    delete recording;
  }

 private:
  // True when it is none. The first one is kept, with the Xid the driver logged for it.
  bool Check(cudaError_t error) {
    if (error == cudaSuccess) return true;
    if (fault_ == Fault::kDevice) return false;
    fault_ = Fault::kDevice;
    error_ = Text(error);
    constexpr int kXidWaitMs = 200;
    if (const uint64_t xid = nvml_.LastXid(kXidWaitMs); xid != 0) error_ += ", Xid " + std::to_string(xid);
    return false;
  }
  // Its copy in page-locked memory, which stays until all lanes were waited for.
  const void* PutAside(const void* host, int64_t bytes) {
    constexpr int64_t kUnit = 256;
    const int64_t size = (bytes + kUnit - 1) / kUnit * kUnit;
    if (smalls_used_ + size > kSmallsBytes && !Synchronize()) return host;  // then nothing is copied
    void* const to = static_cast<char*>(smalls_) + std::exchange(smalls_used_, smalls_used_ + size);
    std::memcpy(to, host, static_cast<size_t>(bytes));
    return to;
  }
  void Copy(Lane lane, void* to, const void* from, int64_t bytes, cudaMemcpyKind kind) {
    if (fault() == Fault::kDevice || bytes == 0) return;
    Check(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), kind, streams_[static_cast<int>(lane)]));
  }

  KernelTable table_;
  const std::string uuid_;
  std::string body_;  // table_'s
  cuda::Nvml nvml_;
  Context context_;
  DecodeAhead ahead_;
  cudaStream_t streams_[kLanes] = {};
  cudaEvent_t events_[kLanes] = {};
  void* smalls_ = nullptr;  // see PutAside
  int64_t smalls_used_ = 0;
  Fault fault_ = Fault::kNone;
  std::string error_;
  int64_t fixed_bytes_ = 0;
};

int DeviceCount(std::string* why) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaSuccess && count > 0) return count;
  cudaGetLastError();
  if (error == cudaErrorInsufficientDriver) {
    int driver = 0;
    cudaDriverGetVersion(&driver);
    *why = driver == 0 ? "no NVIDIA driver is installed here"
                       : "the NVIDIA driver is older than this build's CUDA runtime wants";
  } else if (error == cudaErrorNoDevice || error == cudaSuccess) {
    *why = "the NVIDIA driver shows no device";
  } else {
    *why = "the NVIDIA driver does not answer: " + Text(error);
  }
  return 0;
}

}  // namespace

const char* CudaName() { return "cuda"; }

std::vector<DeviceInfo> CudaDevices(std::string* why) {
  std::vector<DeviceInfo> devices;
  const cuda::Nvml nvml;
  const int count = DeviceCount(why);
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp properties;
    if (const cudaError_t error = cudaGetDeviceProperties(&properties, i); error != cudaSuccess) {
      *why = "device " + std::to_string(i) + " does not answer: " + Text(error);
      continue;
    }
    DeviceInfo device{.index = i,
                      .uuid = Uuid(properties.uuid),
                      .name = properties.name,
                      .memory_bytes = static_cast<int64_t>(properties.totalGlobalMem),
                      .free_bytes = -1,
                      .capability_major = properties.major,
                      .capability_minor = properties.minor,
                      .driver = nvml.DriverVersion()};
    int64_t used_bytes = 0;
    nvml.Memory(device.uuid, &device.free_bytes, &used_bytes);
    devices.push_back(device);
  }
  return devices;
}

std::unique_ptr<Backend> OpenCuda(const CudaOptions& options, std::string* why) {
  const int count = DeviceCount(why);
  if (count == 0) return nullptr;
  if (options.index >= count) {
    *why = "there are " + std::to_string(count) + " devices, numbered from 0";
    return nullptr;
  }
  cudaDeviceProp properties;
  cudaError_t error = cudaGetDeviceProperties(&properties, options.index);
  if (error != cudaSuccess) {
    *why = Text(error);
    return nullptr;
  }
  const int capability = properties.major * 10 + properties.minor;
  if (capability < 75) {
    *why = std::string(properties.name) + " has compute capability " + std::to_string(capability / 10) + "." +
           std::to_string(capability % 10) + "; 7.5 or more is needed";
    return nullptr;
  }
  const CudaAttention* attention = ChosenAttention(HasWgmma(capability), why);
  const CudaProducts* products = ChosenProducts(why);
  if (attention == nullptr || products == nullptr) return nullptr;
  const std::string uuid = Uuid(properties.uuid);
  int64_t free_bytes = 0, used_bytes = -1;
  cuda::Nvml().Memory(uuid, &free_bytes, &used_bytes);
  error = cudaSetDevice(options.index);
  if (error != cudaSuccess) {
    *why = Text(error);
    return nullptr;
  }
  auto backend = std::make_unique<CudaBackend>(CudaTable(capability, options.fp16, *attention), uuid);
  if (!backend->SetUp(used_bytes, *products)) {
    *why = backend->error();
    return nullptr;
  }
  return backend;
}

}  // namespace nibble::kernels
