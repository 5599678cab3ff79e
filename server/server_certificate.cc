#include "server/server_certificate.h"

#include <utility>

#include "base/file.h"
#include "base/status.h"
#include "server/tls_files.h"

namespace nibble::server {
namespace {

constexpr int64_t kMaxBytes = 1 << 20;

}  // namespace

absl::StatusOr<bool> ServerCertificate::Refresh() {
  Pem read;
  ASSIGN_OR_RETURN(read.certificate, ReadFile(paths_.certificate, kMaxBytes));
  ASSIGN_OR_RETURN(read.key, ReadFile(paths_.key, kMaxBytes));
  if (asks_clients()) {
    ASSIGN_OR_RETURN(read.client_ca, ReadFile(paths_.client_ca, kMaxBytes));
  }
  if (const auto before = Current()) {
    read.end_unix_us = before->end_unix_us;
    if (read == *before) return false;
  }
  ASSIGN_OR_RETURN(read.end_unix_us,
                   CheckServerCertificate(read.certificate, read.key, clock_->NowUnixUs()));
  if (asks_clients()) RETURN_IF_ERROR(CheckClientAuthority(read.client_ca));
  auto taken = std::make_shared<const Pem>(std::move(read));
  std::lock_guard lock(mutex_);
  current_ = std::move(taken);
  return true;
}

std::shared_ptr<const ServerCertificate::Pem> ServerCertificate::Current() const {
  std::lock_guard lock(mutex_);
  return current_;
}

}  // namespace nibble::server
