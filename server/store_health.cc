#include "server/store_health.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/error.h"

namespace nibble::server {
namespace {

constexpr int64_t kStandsUs = 30'000'000;

}  // namespace

void StoreHealth::Note(const std::string& operation, const absl::Status& status, int64_t now_us) {
  std::lock_guard lock(mutex_);
  if (status.ok()) {
    failures_.erase(operation);
    return;
  }
  Failure& failure = failures_.try_emplace(operation, Failure{now_us}).first->second;
  failure.last_us = now_us;
  failure.full = StatusReason(status) == Reason::kStorageFull;
}

std::string StoreHealth::Trouble(int64_t now_us) const {
  std::lock_guard lock(mutex_);
  int64_t since_us = now_us;
  bool failing = false, full = false;
  for (const auto& [operation, failure] : failures_) {
    if (now_us - failure.last_us > kStandsUs) continue;
    failing = true;
    full = full || failure.full;
    since_us = std::min(since_us, failure.since_us);
  }
  if (!failing) return "";
  return absl::StrCat("the server cannot write its database", full ? ", its disk is full" : "", " (for ",
                      (now_us - since_us) / 1'000'000, " s): what is shown may be older than it looks");
}

}  // namespace nibble::server
