// A backend: memory, a stream, and the KernelTable that works on them.
//
// The engine reaches a device through this and the table, nothing else. On the host, "device memory" is
// the process's own and every call is done when it returns. Elsewhere a pointer from Allocate means
// something to the table and to the copies below only; the host must not follow it.
//
// Order. Ops, Fill and copies of the compute lane happen in the order in which they were called. The two
// copy lanes run beside it; Wait orders one behind another. What was queued is done for certain after
// Synchronize, and only then may the host look at what a copy out brought or reuse what a copy in read.
//
// Errors. A device that fails stays failed: calls after that do nothing, fault() is kDevice and error()
// says why, also when an op found it (Context::error). Synchronize returns false once it has happened. An
// Allocate that finds no memory returns null and leaves the device as it was. Nothing throws.
//
// Threads. One thread drives a backend.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/kernel_table.h"

namespace nibble::kernels {

// What the driver says of a device; nothing is set up on it to learn this.
struct DeviceInfo {
  int index = 0;
  std::string uuid;                // "GPU-..."; empty when unknown
  std::string name;
  int64_t memory_bytes = 0;        // in all
  int64_t free_bytes = 0;          // now; -1 = unknown
  int capability_major = 0;        // of CUDA
  int capability_minor = 0;
  std::string driver;              // version
};

enum class Fault : uint8_t {
  kNone,
  kOutOfMemory,   // the last Allocate found too little; the plan had room, so somebody else took it
  kDevice,        // sticky: this process can do nothing more with the device
};

// Independent queues of a device. On one that has no such thing they are all the compute lane.
enum class Lane : uint8_t { kCompute = 0, kIn = 1, kOut = 2 };

// Quantization on the device, with the bits of kernels/nf4.h. All pointers are the backend's memory; queued
// on the compute lane; nothing needs workspace. See kernels/cuda/quantize.h.
struct Encoders {
  void (*quantize)(Context*, ParamView values, int64_t count, QuantType type, int64_t block,
                   const float* code_book, uint8_t* codes, float* absmax);
  void (*quantize_absmax)(Context*, const float* absmax, int64_t blocks, const float* signed_map,
                          uint8_t* codes, float* nested_absmax, float* offset);
};

// What a compute lane was given while it was recorded; the backend's.
struct Recording;

class Backend {
 public:
  virtual ~Backend() = default;

  virtual const KernelTable& table() const = 0;
  // For ops; the stream, pool and libraries are set, the workspace is the caller's to set.
  virtual Context& context() = 0;
  // True: pointers from Allocate are ordinary host memory.
  virtual bool is_host() const = 0;

  // Device memory, aligned to 256 bytes, contents undefined. Null when there is not enough. Waits for
  // the device; never called inside a turn.
  virtual void* Allocate(int64_t bytes) = 0;
  virtual void Release(void* device) = 0;
  // Host memory that copies can be queued from and to; page-locked where that means anything.
  virtual void* AllocatePinned(int64_t bytes) = 0;
  virtual void ReleasePinned(void* host) = 0;

  // Queued on a lane. `host` of CopyIn may be ordinary memory: it has then been read on return.
  virtual void CopyIn(Lane lane, void* device, const void* host, int64_t bytes) = 0;
  virtual void CopyOut(Lane lane, void* host, const void* device, int64_t bytes) = 0;
  // Device to device; the ranges do not overlap.
  virtual void CopyWithin(Lane lane, void* to, const void* from, int64_t bytes) = 0;
  virtual void Fill(void* device, uint8_t byte, int64_t bytes) = 0;
  // What is queued on `waiting` from now on begins after all that `awaited` has so far.
  virtual void Wait(Lane waiting, Lane awaited) = 0;
  // Waits for all lanes. False when the device has failed.
  virtual bool Synchronize() = 0;

  // Null = none. Static storage or the backend's.
  virtual Fault fault() const = 0;
  virtual const char* error() const = 0;

  // Bytes of the device: taken by context, code and libraries before any Allocate (measured when it was
  // opened), and free now. The host backend knows neither: 0 and -1.
  virtual int64_t fixed_bytes() const = 0;
  // Of fixed_bytes: set aside for what the driver takes later (code at its first launch, rounding up), free
  // until then.
  virtual int64_t late_bytes() const { return 0; }
  virtual int64_t free_bytes() const = 0;

  // For Context::ahead, its queue set; the tiles are the caller's to set. Null: there is none.
  virtual DecodeAhead* ahead() { return nullptr; }

  // Null: what this device would encode, the host encodes.
  virtual const Encoders* encoders() const { return nullptr; }

  // Recording, so that many small ops are queued as one. From BeginRecording (true) to EndRecording, ops,
  // Fill and CopyWithin of the compute lane are noted and not done, with the arguments that they have then,
  // pointers and numbers alike; nothing else may be called. EndRecording returns null when they cannot be
  // noted, or when that would take more of the device's memory than `most_bytes`: then the caller does them
  // himself. Replay queues them all. Both of the first allocate; Replay does not. An op that was never run
  // before should not be recorded: its code may not be loaded.
  virtual bool BeginRecording() { return false; }
  virtual Recording* EndRecording(int64_t most_bytes) {
    (void)most_bytes;
    return nullptr;
  }
  // Of the device's memory, as the driver told before and after it was made.
  virtual int64_t RecordingBytes(const Recording*) const { return 0; }
  virtual void Replay(Recording*) {}
  virtual void ReleaseRecording(Recording*) {}
};

// On the host: any table whose pointers are the host's. `threads` counts the caller.
std::unique_ptr<Backend> MakeHostBackend(const KernelTable& table, int threads);

// CUDA, or its emulation: a binary links one of nibble_kernels_cuda (the toolkit was there),
// nibble_kernels_cuda_none (it was not) and nibble_kernels_cuda_emulated (tests), which define these.
//
// What `--device` calls it: "cuda", "cuda-emulated", or "" where there is none.
const char* CudaName();
// Empty when there is none; `why` then says in a sentence what is missing (driver, device, toolkit).
std::vector<DeviceInfo> CudaDevices(std::string* why);
struct CudaOptions {
  int index = 0;
  bool fp16 = false;  // fp16 activations; devices below 8.0 have no others
};
// Takes the device's context and libraries and measures what they cost. Null: `why` says why not.
std::unique_ptr<Backend> OpenCuda(const CudaOptions& options, std::string* why);

}  // namespace nibble::kernels
