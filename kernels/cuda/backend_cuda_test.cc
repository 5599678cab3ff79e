// CudaBackend's copies in on a host that plays CUDA's runtime: a copy reads its source as late as CUDA's
// documentation lets it, when its stream is waited for, whatever memory that is. Needs CUDA's headers and no
// GPU.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/nvml.h"
#include "kernels/cuda/quantize.h"

namespace {

std::map<cudaStream_t, std::vector<std::function<void()>>> queued;
std::map<const void*, size_t> pinned;
int64_t waits = 0;

bool IsPinned(const void* at) {
  const auto after = pinned.upper_bound(at);
  if (after == pinned.begin()) return false;
  const auto& [begin, bytes] = *std::prev(after);
  return static_cast<const char*>(at) < static_cast<const char*>(begin) + bytes;
}

// Something that a handle points to.
template <typename Handle>
cudaError_t Make(Handle* handle) {
  *handle = reinterpret_cast<Handle>(new int);
  return cudaSuccess;
}
template <typename Handle>
cudaError_t Destroy(Handle handle) {
  delete reinterpret_cast<int*>(handle);
  return cudaSuccess;
}

}  // namespace

extern "C" {
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  ++waits;
  for (const auto& work : std::exchange(queued[stream], {})) work();
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  queued[stream].push_back([=] { std::memcpy(to, from, bytes); });
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int byte, size_t bytes, cudaStream_t stream) {
  queued[stream].push_back([=] { std::memset(to, byte, bytes); });
  return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* of, const void* at) {
  of->type = IsPinned(at) ? cudaMemoryTypeHost : cudaMemoryTypeUnregistered;
  return cudaSuccess;
}
cudaError_t cudaMalloc(void** to, size_t bytes) {
  *to = std::malloc(bytes);
  return cudaSuccess;
}
cudaError_t cudaFree(void* at) {
  std::free(at);
  return cudaSuccess;
}
cudaError_t cudaHostAlloc(void** to, size_t bytes, unsigned) {
  *to = std::malloc(bytes);
  pinned[*to] = bytes;
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* at) {
  pinned.erase(at);
  std::free(at);
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* of, int) {
  *of = {};
  of->major = 9;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *free = *total = size_t{1} << 30;
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) { return Make(stream); }
cudaError_t cudaStreamDestroy(cudaStream_t stream) { return Destroy(stream); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) { return Make(event); }
cudaError_t cudaEventDestroy(cudaEvent_t event) { return Destroy(event); }
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
cudaError_t cudaDriverGetVersion(int*) { return cudaSuccess; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorName(cudaError_t) { return ""; }
const char* cudaGetErrorString(cudaError_t) { return ""; }
cudaError_t cudaGraphDestroy(cudaGraph_t) { return cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t) { return cudaSuccess; }
cudaError_t cudaGraphInstantiate(cudaGraphExec_t*, cudaGraph_t, unsigned long long) { return cudaSuccess; }
cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) { return cudaErrorNotSupported; }
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t*) { return cudaErrorNotSupported; }
}

namespace nibble::kernels {

// The backend's parts that nvcc compiles, of which none is called here, and no management library.
bool HasWgmma(int) { return false; }
const KernelTable& CudaTable(int, bool, CudaAttention) {
  static const KernelTable table = [] {
    KernelTable t{};
    t.name = "cuda";
    t.body = "played";
    return t;
  }();
  return table;
}
int64_t OpenCudaLibraries(Context*, DType, CudaProducts, std::string*) { return 0; }
void CloseCudaLibraries(Context*) {}
namespace cuda {
void Quantize(Context*, ParamView, int64_t, QuantType, int64_t, const float*, uint8_t*, float*) {}
void QuantizeAbsmax(Context*, const float*, int64_t, const float*, uint8_t*, float*, float*) {}
Nvml::Nvml() = default;
Nvml::~Nvml() = default;
std::string Nvml::DriverVersion() const { return ""; }
bool Nvml::Memory(const std::string&, int64_t*, int64_t*) const { return false; }
void Nvml::WatchXids(const std::string&) {}
uint64_t Nvml::LastXid(int) { return 0; }
}  // namespace cuda

namespace {

std::unique_ptr<Backend> Open() {
  std::string why;
  std::unique_ptr<Backend> backend = OpenCuda({}, &why);
  EXPECT_NE(backend, nullptr) << why;
  return backend;
}

// Copies `count` pieces from one array that is filled anew for each; whether all of them arrive.
bool Arrive(Backend& backend, int64_t bytes, int64_t count) {
  auto* const device = static_cast<uint8_t*>(backend.Allocate(bytes * count));
  std::vector<uint8_t> host(static_cast<size_t>(bytes));
  for (int64_t i = 0; i < count; ++i) {
    std::memset(host.data(), static_cast<int>(i % 251), host.size());
    backend.CopyIn(Lane::kCompute, device + i * bytes, host.data(), bytes);
  }
  std::memset(host.data(), 255, host.size());
  bool all = backend.Synchronize();
  for (int64_t i = 0; i < bytes * count; ++i) all = all && device[i] == i / bytes % 251;
  backend.Release(device);
  return all;
}

TEST(CudaBackend, OrdinaryMemoryIsReadBeforeACopyReturns) {
  const std::unique_ptr<Backend> backend = Open();
  for (const int64_t bytes : {1, 8, 256, 257, 4000, 65535, 65536, 65537, 200000}) {
    for (const int64_t count : {1, 2, 3, 4, 5, 40}) {
      EXPECT_TRUE(Arrive(*backend, bytes, count)) << count << " times " << bytes << " bytes";
    }
  }
  EXPECT_TRUE(Arrive(*backend, 8, 5000));  // more than is put aside at a time
}

TEST(CudaBackend, WhatAStepCopiesInWaitsForNothing) {
  const std::unique_ptr<Backend> backend = Open();
  void* const device = backend->Allocate(16);
  const int64_t before = waits;
  for (uint64_t i = 0; i < 32; ++i) backend->CopyIn(Lane::kCompute, device, &i, sizeof i);
  EXPECT_EQ(waits, before);
  backend->Release(device);
}

TEST(CudaBackend, PageLockedMemoryIsReadWhenTheDeviceComesToIt) {
  const std::unique_ptr<Backend> backend = Open();
  auto* const device = static_cast<int*>(backend->Allocate(sizeof(int)));
  auto* const host = static_cast<int*>(backend->AllocatePinned(sizeof(int)));
  *host = 1;
  backend->CopyIn(Lane::kCompute, device, host, sizeof(int));
  *host = 2;
  EXPECT_TRUE(backend->Synchronize());
  EXPECT_EQ(*device, 2);  // the played runtime is as late as it may be
  backend->ReleasePinned(host);
  backend->Release(device);
}

}  // namespace
}  // namespace nibble::kernels
