// The worker's side of the wire, as calls that block and answer in the agent's own words.
//
// An interface, so that the loop can be tested without a network. Thread-safe: one Synchronize at a
// time, everything else from any number of threads.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "engine/spec/memory_plan.h"
#include "worker/core/messages.h"

namespace nibble::worker {

struct DeviceInfo {
  std::string id;  // "cpu0"
  std::string description;
  spec::DeviceProfile profile;  // with the capacity offered
  std::string uuid;             // of a GPU
};

struct WorkerIdentity {
  std::string worker_id;    // stable
  std::string incarnation;  // of this process
  std::string version;
  std::vector<DeviceInfo> devices;
  bool shares_file_system = false;
};

class ServerLink {
 public:
  virtual ~ServerLink() = default;
  virtual RegisterReply Register(const DoRegister& action) = 0;
  // Held by the server while nothing changes.
  virtual SynchronizeReply Synchronize(const DoSynchronize& action) = 0;
  // Lets a Synchronize with an id below `id` return at once, as unavailable, now or when it comes.
  virtual void CancelSynchronizeBefore(int64_t id) = 0;
  virtual ReportReply Report(const DoReport& action) = 0;
  // One blob from `offset` on; ends early when `write` fails or `cancelled` says so.
  virtual absl::Status FetchBlob(const std::string& sha256, int64_t offset,
                                 const std::function<absl::Status(std::string_view)>& write,
                                 const std::function<bool()>& cancelled) = 0;
  // The bytes of `path`, resumable; OK when the server has them all.
  virtual absl::Status PutBlob(const AttemptKey& key, const std::string& token, const FileRef& file,
                               const std::string& path, const std::function<bool()>& cancelled) = 0;
  // Everything outstanding and to come fails at once.
  virtual void Shutdown() = 0;
};

}  // namespace nibble::worker
