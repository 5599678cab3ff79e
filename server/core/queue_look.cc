#include "server/core/queue_look.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/core/schedule.h"

namespace nibble::core {
namespace {

constexpr size_t kMaxNames = 4;
constexpr size_t kStarts = 1'000;

}  // namespace

int32_t QueueLook::PlaceOf(const Job& job) {
  const Board& board = state_.board;
  if (job.state != JobState::kQueued || board.waiting().count(job.number) == 0) return 0;
  const int64_t estimate = JobsBefore(board, now_us_, job.number) + 1;
  // Far behind the exact ones whatever the estimate leaves out.
  if (estimate <= 2 * kExactPlaces) {
    if (!first_) {
      first_.emplace();
      for (const int64_t number : OrderOf(board, now_us_, kExactPlaces))
        first_->emplace(number, static_cast<int32_t>(first_->size()) + 1);
    }
    const auto exact = first_->find(job.number);
    if (exact != first_->end()) return exact->second;
  }
  return static_cast<int32_t>(std::max<int64_t>(estimate, kExactPlaces + 1));
}

const std::vector<BoardReservation>& QueueLook::Reservations() {
  if (!reservations_) {
    reservations_ = RunPass(state_.board, core_.options, NeedsOf(state_, core_), now_us_,
                            core_.options.lease_suspect_us, kStarts)
                        .reservations;
  }
  return *reservations_;
}

bool QueueLook::Sees(const std::string& job_id) const {
  if (scope_.empty()) return true;
  const Job* job = state_.FindJob(job_id);
  return job != nullptr && job->tenant == scope_;
}

std::string QueueLook::NameOf(const std::string& job_id) const {
  return Sees(job_id) ? absl::StrCat("jobs/", job_id) : kHidden;
}

std::string QueueLook::NamesOf(const std::vector<std::string>& job_ids) const {
  std::vector<std::string> names;
  for (const std::string& id : job_ids) {
    if (Sees(id)) names.push_back(id);
  }
  const size_t hidden = job_ids.size() - names.size();
  std::sort(names.begin(), names.end());
  const size_t more = names.size() - std::min(names.size(), kMaxNames);
  names.resize(names.size() - more);
  std::string text = absl::StrJoin(names, ", ");
  if (more > 0) absl::StrAppend(&text, " and ", more, " more");
  if (hidden == 0) return text;
  return absl::StrCat(text, text.empty() ? "" : " and ",
                      hidden == 1 ? kHidden : absl::StrCat(hidden, " jobs of other projects"));
}

}  // namespace nibble::core
