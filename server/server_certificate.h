// The certificate that a server shows, and the authority whose callers it lets in: as they stand in their
// files, which are read again now and then, so that a renewed certificate needs no restart.
//
// What was read is taken only whole and only when it is good: a pair of which one half is written yet, one
// that has ended, text that is cut off leave what was taken before. Thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/clock.h"

namespace nibble::server {

class ServerCertificate {
 public:
  // Files in PEM; `client_ca` "" = callers show no certificates.
  struct Paths {
    std::string certificate;
    std::string key;
    std::string client_ca;
  };
  struct Pem {
    std::string certificate;
    std::string key;
    std::string client_ca;
    int64_t end_unix_us = 0;
    bool operator==(const Pem&) const = default;
  };

  // `clock` must outlive it. There is no certificate before the first Refresh that went well.
  ServerCertificate(Paths paths, const Clock* clock) : paths_(std::move(paths)), clock_(clock) {}
  // True when others than before were taken. An error says what is wrong with what is in the files now.
  absl::StatusOr<bool> Refresh();
  // What was taken last; nullptr = nothing yet. Another pointer is another certificate.
  std::shared_ptr<const Pem> Current() const;
  bool asks_clients() const { return !paths_.client_ca.empty(); }

 private:
  const Paths paths_;
  const Clock* const clock_;
  mutable std::mutex mutex_;
  std::shared_ptr<const Pem> current_;
};

}  // namespace nibble::server
