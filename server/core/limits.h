// Every bound of the server's state in one place, each with its reason. All are checked in Decide.
#pragma once

#include <cstddef>
#include <cstdint>

namespace nibble::core {

// Jobs that are not terminal. A job costs some KB of memory and one row.
inline constexpr size_t kMaxLiveJobs = 200'000;
// Terminal jobs stay until they are deleted or retention takes them; ListJobs pages over all.
inline constexpr size_t kMaxJobs = 1'000'000;
inline constexpr size_t kMaxWorkers = 10'000;
inline constexpr size_t kMaxDevicesPerWorker = 64;
// Of a device's memory, its host's and its fixed costs: a PiB, so that no sum over a fleet comes near 2^63.
inline constexpr int64_t kMaxDeviceBytes = int64_t{1} << 50;
// What a worker says of itself and its devices in words: shown in lists, stored in its row.
inline constexpr size_t kMaxWorkerTextBytes = 512;
inline constexpr size_t kMaxProfileBytes = 4 * 1024;
inline constexpr size_t kMaxDatasets = 100'000;
inline constexpr size_t kMaxModels = 10'000;
// Labels are indexed by nobody, but travel with every Job.
inline constexpr size_t kMaxLabels = 64;
inline constexpr size_t kMaxLabelBytes = 256;
inline constexpr size_t kMaxDisplayNameBytes = 256;
inline constexpr size_t kMaxRequestIdBytes = 128;
// Wide enough to order anything, small enough that aging can never overflow.
inline constexpr int32_t kMaxPriority = 1'000;
inline constexpr size_t kMaxFilesPerManifest = 1'000;
// A report of CHECK or of a plan is shown whole.
inline constexpr size_t kMaxReportBytes = 64 * 1024;
// Superseded incarnations a worker row remembers, so that a late Register of a dead process is
// refused.
inline constexpr size_t kMaxPastIncarnations = 32;
// Commands in one turn of the control loop: bounds the reply delay and the size of a transaction.
inline constexpr size_t kMaxBatchCommands = 256;
// Commands waiting for the loop; beyond it callers hear QUEUE_FULL.
inline constexpr size_t kMailboxCapacity = 8'192;

}  // namespace nibble::core
