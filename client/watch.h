// Watching a job across restarts of the server.
//
// Run blocks, hands every update to the callback in order of sequence, and reconnects from the last
// sequence seen when the stream breaks. It ends when the job is terminal, when the callback says
// stop, on Cancel, or when the server stays away longer than `patience_ms`. Run from one thread;
// Cancel from any.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "absl/status/status.h"
#include "client/client.h"

namespace nibble::client {

bool IsTerminal(v1::JobState state);

class JobWatch {
 public:
  struct Options {
    int64_t after_sequence = 0;
    int64_t after_step = 0;
    int64_t patience_ms = 300'000;
    std::function<void(const absl::Status&)> on_cut;  // the stream broke; a new try follows
  };
  // Returns false to stop.
  using OnUpdate = std::function<bool(const v1::WatchJobResponse&)>;

  JobWatch(Client& client, std::string name, Options options);
  ~JobWatch();
  absl::Status Run(const OnUpdate& on_update);
  void Cancel();

 private:
  absl::Status RunOnce(const OnUpdate& on_update, bool& stopped, bool& progressed);
  bool Deliver(const v1::WatchJobResponse& update, const OnUpdate& on_update);

  Client& client_;
  const std::string name_;
  const Options options_;
  int64_t last_sequence_;
  int64_t last_step_;
  bool terminal_ = false;
  std::atomic<bool> cancelled_{false};
  std::mutex mutex_;  // guards context_
  grpc::ClientContext* context_ = nullptr;
};

}  // namespace nibble::client
