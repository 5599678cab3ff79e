#include "server/trouble_log.h"

namespace nibble::server {
namespace {

constexpr int64_t kAgainUs = 60'000'000;
constexpr int64_t kMendedUs = 30'000'000;  // without a failure

}  // namespace

TroubleLog::Verdict TroubleLog::Note(const std::string& operation, bool failed, int64_t now_us) {
  std::lock_guard lock(mutex_);
  const auto it = troubles_.find(operation);
  if (failed) {
    if (it == troubles_.end()) {
      troubles_[operation] = {now_us, now_us, now_us};
      return {Say::kFails};
    }
    it->second.last_us = now_us;
    if (now_us - it->second.said_us < kAgainUs) return {};
    it->second.said_us = now_us;
    return {Say::kFails};
  }
  if (it == troubles_.end() || now_us - it->second.last_us < kMendedUs) return {};
  const Verdict verdict{Say::kWorksAgain, it->second.last_us - it->second.since_us};
  troubles_.erase(it);
  return verdict;
}

}  // namespace nibble::server
