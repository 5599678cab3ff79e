#include "client/run_view.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "client/output.h"
#include "client/report.h"
#include "client/watch.h"

namespace nibble::client {
namespace {

constexpr size_t kRecentSteps = 20;
constexpr int kPlainStepLines = 20;  // over the whole run, in a pipe

int64_t StepTimeUs(const std::deque<v1::MetricPoint>& points) {
  int64_t sum = 0;
  for (const auto& p : points) sum += p.step_time_us();
  return points.empty() ? 0 : sum / static_cast<int64_t>(points.size());
}

std::string_view PhaseText(std::string_view phase) {
  if (phase == "FETCHING") return "fetching model and data";
  if (phase == "LOADING_BASE") return "loading and quantizing the base model";
  if (phase == "TOKENIZING") return "tokenizing";
  if (phase == "EVALUATING") return "evaluating";
  if (phase == "CHECKPOINTING") return "writing a checkpoint";
  if (phase == "UPLOADING") return "uploading the result";
  return "";
}

// Why a job waits, without the figures, which change by the second ("expected to start in about 9 s").
std::string WithoutFigures(const std::string& reason) {
  std::vector<std::string> words = absl::StrSplit(reason, ' ');
  std::erase_if(words, [](absl::string_view word) {
    absl::ConsumePrefix(&word, "(");
    return !word.empty() && absl::ascii_isdigit(static_cast<unsigned char>(word.front()));
  });
  return absl::StrJoin(words, " ");
}

}  // namespace

void RunView::Apply(const v1::WatchJobResponse& update) {
  switch (update.update_case()) {
    case v1::WatchJobResponse::kSnapshot:
      return Refresh(update.snapshot());
    case v1::WatchJobResponse::kEvent:
      return OnEvent(update.event());
    case v1::WatchJobResponse::kMetric:
      return OnMetric(update.metric());
    case v1::WatchJobResponse::kHeartbeat:
      return;
    case v1::WatchJobResponse::UPDATE_NOT_SET:
      return;
  }
}

void RunView::Refresh(const v1::Job& job) {
  // A queued job explains itself; in a pipe that is worth a line whenever more than figures change.
  const bool waits = job.state() == v1::QUEUED && !job.state_reason().empty();
  if (!live_ && waits && WithoutFigures(job.state_reason()) != WithoutFigures(job_.state_reason())) {
    lines_.push_back(absl::StrCat("waiting: ", job.state_reason()));
  }
  job_ = job;
  has_job_ = true;
  if (told_of_data_ || job.dataset_report_json().empty()) return;
  told_of_data_ = true;
  for (const std::string& line : DataWarnings(job)) lines_.push_back(Printable(line));
}

void RunView::OnEvent(const v1::JobEvent& event) {
  last_sequence_ = std::max(last_sequence_, event.sequence());
  if (event.state() != v1::JOB_STATE_UNSPECIFIED) job_.set_state(event.state());
  if (event.type() == "checkpoint.saved") ++checkpoints_;
  // The stream brings no new snapshot when the data has been read.
  const auto planned = event.fields().find("planned_steps");
  int64_t steps = 0;
  if (planned != event.fields().end() && absl::SimpleAtoi(planned->second, &steps)) {
    job_.mutable_progress()->set_planned_steps(steps);
  }
  if (event.type() == "checkpoint.dropped" || event.type() == "job.updated") return;
  std::string line = absl::StrCat(ClockText(ToUnixUs(event.time())), "  ",
                                  event.message().empty() ? event.type() : event.message());
  lines_.push_back(Paint(style_, Ink::kDim, line));
}

void RunView::OnMetric(const v1::MetricPoint& point) {
  if (point.has_eval_loss()) {
    eval_loss_ = point.eval_loss();
    has_eval_ = true;
  }
  const bool is_step = point.step_time_us() > 0;  // else an evaluation alone
  if (is_step) OnStep(point);
  if (point.has_eval_loss() && !live_) {
    lines_.push_back(
        absl::StrCat("step ", point.step(), "  held-out loss ", FormatLoss(eval_loss_)));
  }
}

void RunView::OnStep(const v1::MetricPoint& point) {
  // After a resume the steps since the last checkpoint come again.
  if (point.step() <= last_step_) {
    const auto keep = static_cast<size_t>(std::max<int64_t>(0, point.step() - 1));
    if (losses_.size() > keep) losses_.resize(keep);
    recent_.clear();
  }
  last_step_ = point.step();
  losses_.push_back(point.loss());
  if (!has_loss_) first_loss_ = point.loss();
  has_loss_ = true;
  learning_rate_ = point.learning_rate();
  recent_.push_back(point);
  if (recent_.size() > kRecentSteps) recent_.pop_front();
  if (!live_) {
    const int64_t every = std::max<int64_t>(1, job_.progress().planned_steps() / kPlainStepLines);
    const bool last = point.step() == job_.progress().planned_steps();
    if (point.step() == 1 || point.step() % every == 0 || last) lines_.push_back(StepLine(point));
  }
}

int64_t RunView::step() const { return std::max(last_step_, job_.progress().completed_steps()); }

double RunView::TokensPerSecond() const {
  int64_t tokens = 0;
  int64_t time_us = 0;
  for (const auto& p : recent_) {
    tokens += p.tokens();
    time_us += p.step_time_us();
  }
  return time_us > 0 ? static_cast<double>(tokens) * 1e6 / static_cast<double>(time_us) : 0;
}

int64_t RunView::RemainingSeconds() const {
  const int64_t left = job_.progress().planned_steps() - step();
  const int64_t step_us = StepTimeUs(recent_);
  if (job_.progress().planned_steps() <= 0 || step_us <= 0) return -1;
  return std::max<int64_t>(0, left) * step_us / 1'000'000;
}

std::string RunView::StepLine(const v1::MetricPoint& point) const {
  const int64_t planned = job_.progress().planned_steps();
  std::string line = absl::StrCat("step ", point.step());
  if (planned > 0) absl::StrAppend(&line, "/", planned);
  absl::StrAppend(&line, "  loss ", FormatLoss(point.loss()), "  lr ",
                  FormatRate(point.learning_rate()), "  ", FormatCount(TokensPerSecond()),
                  " tok/s");
  if (const int64_t left = RemainingSeconds(); left >= 0)
    absl::StrAppend(&line, "  eta ", FormatDuration(left));
  return line;
}

std::vector<std::string> RunView::TakeLines() {
  std::vector<std::string> lines;
  lines.swap(lines_);
  return lines;
}

std::vector<std::string> RunView::Frame(int columns, int64_t now_unix_us) const {
  if (!has_job_ || IsTerminal(job_.state())) return {};
  std::vector<std::string> lines;
  const int64_t planned = job_.progress().planned_steps();
  const double fraction =
      planned > 0 ? static_cast<double>(step()) / static_cast<double>(planned) : 0;
  std::string head = absl::StrCat(Paint(style_, Ink::kBold, ShortName(job_.name())), "  ",
                                  StateText(style_, job_.state()));
  if (planned > 0) {
    const int64_t left = RemainingSeconds();
    absl::StrAppend(&head, "  ", Bar(fraction, std::clamp(columns - 60, 10, 40), style_), "  ",
                    static_cast<int>(fraction * 100), " %  step ", step(), "/", planned,
                    left >= 0 ? absl::StrCat("  eta ", FormatDuration(left)) : "");
  } else if (job_.has_start_time()) {
    absl::StrAppend(&head, "  ",
                    FormatDuration((now_unix_us - ToUnixUs(job_.start_time())) / 1'000'000));
  }
  const std::string_view phase = PhaseText(job_.progress().phase());
  if (!phase.empty() && (planned == 0 || job_.progress().phase() != "TRAINING")) {
    absl::StrAppend(&head, "  ", Paint(style_, Ink::kDim, phase));
  }
  lines.push_back(Ellipsize(head, columns, style_));
  if (job_.state() == v1::QUEUED && !job_.state_reason().empty()) {
    lines.push_back(Ellipsize(absl::StrCat("  ", job_.state_reason()), columns, style_));
  }
  if (has_loss_) {
    std::string line = absl::StrCat(
        "  loss ", FormatLoss(losses_.empty() ? first_loss_ : losses_.back()), "  ",
        Paint(style_, Ink::kBlue, Sparkline(losses_, std::clamp(columns - 60, 10, 48), style_)));
    if (has_eval_) absl::StrAppend(&line, "  held-out ", FormatLoss(eval_loss_));
    absl::StrAppend(&line, "  ", FormatCount(TokensPerSecond()), " tok/s  lr ",
                    FormatRate(learning_rate_));
    if (checkpoints_)
      absl::StrAppend(&line, "  ", checkpoints_,
                      checkpoints_ == 1 ? " checkpoint" : " checkpoints");
    lines.push_back(Ellipsize(line, columns, style_));
  }
  return lines;
}

std::vector<std::string> RunView::Summary() const {
  const std::string id = ShortName(job_.name());
  std::vector<std::string> lines;
  std::string head = absl::StrCat(id, " ", StateText(style_, job_.state()));
  if (job_.has_end_time() && job_.has_start_time()) {
    absl::StrAppend(
        &head, " after ",
        FormatDuration((ToUnixUs(job_.end_time()) - ToUnixUs(job_.start_time())) / 1'000'000));
  }
  if (job_.progress().completed_steps() > 0) {
    absl::StrAppend(&head, ": ", job_.progress().completed_steps(),
                    job_.progress().completed_steps() == 1 ? " step, " : " steps, ",
                    FormatCount(static_cast<double>(job_.progress().trained_tokens())), " tokens");
  }
  lines.push_back(head);
  if (has_loss_ && !losses_.empty()) {
    std::string loss =
        absl::StrCat("  loss      ", FormatLoss(first_loss_), " -> ", FormatLoss(losses_.back()),
                     "  ", Sparkline(losses_, 40, style_));
    if (has_eval_) absl::StrAppend(&loss, "  held-out ", FormatLoss(eval_loss_));
    lines.push_back(loss);
  }
  if (job_.used_bytes() > 0) {
    lines.push_back(absl::StrCat("  memory    ", FormatBytes(job_.plan().total_bytes()),
                                 " planned, ", FormatBytes(job_.used_bytes()), " used"));
  }
  if (job_.state() == v1::SUCCEEDED) {
    lines.push_back(absl::StrCat("  adapter   ", job_.adapter()));
    lines.push_back(absl::StrCat("  next      nibble download ", id, " -o ", id, "-adapter"));
  } else if (job_.state() == v1::FAILED) {
    lines.push_back(absl::StrCat("  error     ", job_.error().message()));
    lines.push_back(absl::StrCat("  see       nibble describe ", id));
  }
  return lines;
}

}  // namespace nibble::client
