#include "client/patience.h"

#include <chrono>
#include <thread>

#include "absl/strings/match.h"
#include "base/clock.h"
#include "base/random.h"

namespace nibble::client {
namespace {

constexpr int kMostTries = 6;

}  // namespace

bool IsAway(const absl::Status& status) {
  // Both say "unavailable", but time does not mend what is wrong with a certificate.
  if (absl::StrContains(status.message(), "certificate")) return false;
  return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status);
}

void Patience::Reset() {
  tries_ = 0;
  since_us_ = 0;
}

bool Patience::Again(const absl::Status& why) {
  const ClientOptions& options = client_.options();
  const int64_t now_us = RealClock::Get().NowMonotonicUs();
  if (since_us_ == 0) since_us_ = now_us;
  const bool away = IsAway(why);
  if (absl::IsUnavailable(why)) client_.RenewTrust();
  ++tries_;
  const bool by_time = away && client_.reached();
  if (by_time ? now_us - since_us_ > options.patience_ms * 1'000 : tries_ >= kMostTries) return false;
  if (away && tries_ == 1 && options.on_away) options.on_away(why);
  std::this_thread::sleep_for(
      std::chrono::milliseconds(BackoffMs(options.first_backoff_ms, tries_, SystemEntropy())));
  return true;
}

}  // namespace nibble::client
