#include "server/rpc/job_watch.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/id.h"
#include "base/log.h"
#include "base/status.h"
#include "server/rpc/call.h"
#include "server/rpc/convert.h"
#include "server/rpc/job_service.h"
#include "server/rpc/status.h"

namespace nibble::server {
namespace {

constexpr size_t kMaxBuffered = 256;
constexpr int64_t kEventsPerRead = 1000;
constexpr int64_t kMaxMetrics = 5000;
constexpr char kMethod[] = "/nibble.v1.JobService/WatchJob";

}  // namespace

JobWatch::JobWatch(Edge& edge, grpc::CallbackServerContext* context, std::string job_id,
                   std::string scope, const v1::WatchJobRequest& request)
    : edge_(edge),
      context_(context),
      job_id_(std::move(job_id)),
      scope_(std::move(scope)),
      last_sequence_(request.after_sequence()),
      after_step_(request.after_step()) {}

void JobWatch::Refuse(const absl::Status& status) {
  std::lock_guard lock(mutex_);
  self_ = shared_from_this();
  End(status);
  Pump();
}

void JobWatch::Start() {
  {
    std::lock_guard lock(mutex_);
    self_ = shared_from_this();
    sent_us_ = edge_.clock->NowMonotonicUs();
  }
  const bool posted =
      edge_.loop->Read([self = shared_from_this()](const Outcome& outcome) { self->Begin(outcome); });
  if (!posted) {
    std::lock_guard lock(mutex_);
    End(Busy(edge_));
    Pump();
  }
}

// Whether there is anything behind the place that the watcher asks for, or has come to.
absl::Status JobWatch::CheckBegin(const core::Job& job) const {
  if (number_ != 0 && job.number != number_) {
    return Error(Reason::kJobNotFound,
                 absl::StrCat("jobs/", job_id_, " was removed, and its name is another job's"));
  }
  if (last_sequence_ >= 0 && last_sequence_ <= job.last_sequence && after_step_ >= 0) return absl::OkStatus();
  return Error::Field(Reason::kSequenceExpired, "after_sequence",
                      absl::StrCat("is ", last_sequence_, "; the job's events end at ", job.last_sequence));
}

// On the loop's thread, at first and whenever the subscription was cut: what is published later is in the new
// one.
void JobWatch::Begin(const Outcome& outcome) {
  std::lock_guard lock(mutex_);
  // Cancelled before its turn came. A subscription made now would outlive OnDone and could end with the last
  // reference inside its own wake call, under the hub's locks.
  if (final_) return;
  const auto job = FindJob(outcome.state, job_id_, scope_);
  const absl::Status begins = job.ok() ? CheckBegin(**job) : job.status();
  if (!begins.ok()) {
    End(begins);
  } else {
    if (number_ == 0) {
      JobView view(outcome.state, outcome.core, outcome.now, scope_);
      ToProto(view, **job, out_.emplace_back().mutable_snapshot());
      number_ = (*job)->number;
    }
    begun_sequence_ = (*job)->last_sequence;
    if (last_sequence_ == 0) last_sequence_ = begun_sequence_;
    terminal_ = core::IsTerminal((*job)->state);
    Subscribe();
    if (!edge_.io->Post([self = shared_from_this()] { self->Load(); })) End(Busy(edge_));
  }
  Pump();
}

// From the last sequence that was seen.
void JobWatch::GoOn() {
  if (edge_.draining) {
    return End(Error(Reason::kShuttingDown, "the server is shutting down; watch again from resume_sequence")
                   .With("resume_sequence", std::to_string(last_sequence_)));
  }
  loading_ = true;
  after_step_ = last_metric_.second;
  if (!edge_.loop->Read([self = shared_from_this()](const Outcome& outcome) { self->Begin(outcome); }))
    End(Busy(edge_));
}

void JobWatch::Subscribe() {
  subscription_ = edge_.hub->Subscribe(job_id_, [weak = weak_from_this()] {
    if (auto self = weak.lock()) self->PostDrain();
  });
}

void JobWatch::PostDrain() {
  // When the pool is full the next Tick comes back to it.
  (void)edge_.io->Post([self = shared_from_this()] { self->Drain(); });
}

// On the pool: everything between what the watcher has and what the subscription will bring.
void JobWatch::Load() {
  std::unique_lock lock(mutex_);
  PushMetricsAfter(after_step_, lock);
  for (bool more = true; more && !final_;) {
    const int64_t after = last_sequence_, last = begun_sequence_;
    lock.unlock();
    const auto events = edge_.history->Events(job_id_, after, last, kEventsPerRead);
    lock.lock();
    if (!events.ok()) {
      End(events.status());
      break;
    }
    for (const core::EventRecord& event : *events) PushEvent(event);
    more = static_cast<int64_t>(events->size()) == kEventsPerRead;
  }
  if (terminal_ && !final_) End(absl::OkStatus());
  loading_ = false;
  Pump();
  lock.unlock();
  Drain();
}

void JobWatch::Drain() {
  std::unique_lock lock(mutex_);
  if (draining_) drain_again_ = true;
  if (loading_ || draining_ || final_ || !subscription_ || out_.size() >= kMaxBuffered) return;
  draining_ = true;
  drain_again_ = false;
  auto subscription = subscription_;
  lock.unlock();
  WatchHub::Taken taken = subscription->Take();
  lock.lock();
  const bool cut = taken.cut;
  bool ends = false;
  for (const core::EventRecord& event : taken.events) ends |= core::IsTerminal(event.state);
  // A report's steps are stored before its end is committed, so History has them all by now.
  if (ends) PushMetricsAfter(last_metric_.second, lock);
  TakeNew(std::move(taken));
  draining_ = false;
  if (drain_again_) PostDrain();
  if (cut && !final_) GoOn();
  Pump();
}

void JobWatch::TakeNew(WatchHub::Taken taken) {
  for (const store::StepMetric& metric : taken.metrics) PushMetric(metric);
  for (const core::EventRecord& event : taken.events) PushEvent(event);
}

void JobWatch::PushEvent(const core::EventRecord& event) {
  if (event.sequence <= last_sequence_ || final_) return;
  last_sequence_ = event.sequence;
  ToProto(event, out_.emplace_back().mutable_event());
  if (core::IsTerminal(event.state)) End(absl::OkStatus());
}

void JobWatch::PushMetric(const store::StepMetric& metric) {
  const std::pair key{metric.epoch, metric.step};
  // A step is sent again only to bring its evaluation.
  if (final_ || key < last_metric_ || (key == last_metric_ && !metric.eval_loss)) return;
  last_metric_ = key;
  ToProto(metric, out_.emplace_back().mutable_metric());
}

// Reads without the lock; only one thread of a watch reads at a time.
void JobWatch::PushMetricsAfter(int64_t step, std::unique_lock<std::mutex>& lock) {
  lock.unlock();
  const auto metrics = edge_.history->Metrics(job_id_, step, 0, kMaxMetrics);
  lock.lock();
  if (!metrics.ok()) {
    End(metrics.status());
    return;
  }
  for (const store::StepMetric& metric : *metrics) PushMetric(metric);
}

void JobWatch::Tick() {
  PostDrain();
  std::lock_guard lock(mutex_);
  const int64_t quiet_us = edge_.clock->NowMonotonicUs() - sent_us_;
  if (writing_ && quiet_us > edge_.stuck_write_us) {
    LogWarning("watch.stuck", {{"job", job_id_}, {"last_sequence", last_sequence_}});
    if (context_) context_->TryCancel();
    return;
  }
  // A job may run for weeks: a token that was revoked or has ended meanwhile shows no more of it.
  if (context_ && !final_ && edge_.authorizer->required()) {
    if (const auto caller = Authorize(edge_, context_, kMethod); !caller.ok()) {
      out_.clear();
      End(caller.status());
      return Pump();
    }
  }
  if (!writing_ && !loading_ && out_.empty() && !final_ && quiet_us >= edge_.heartbeat_us) {
    out_.emplace_back().mutable_heartbeat()->set_last_sequence(last_sequence_);
    Pump();
  }
}

// The first end counts; what is buffered still goes out.
void JobWatch::End(const absl::Status& status) {
  LogHidden(status);
  if (!final_) final_ = ToGrpcStatus(status);
}

void JobWatch::Pump() {
  if (finished_ || writing_) return;
  if (!out_.empty()) {
    current_ = std::move(out_.front());
    out_.pop_front();
    writing_ = true;
    sent_us_ = edge_.clock->NowMonotonicUs();
    StartWrite(&current_);
  } else if (final_) {
    finished_ = true;
    Finish(*final_);
  }
}

void JobWatch::OnWriteDone(bool ok) {
  std::lock_guard lock(mutex_);
  writing_ = false;
  sent_us_ = edge_.clock->NowMonotonicUs();
  if (!ok) {
    out_.clear();
    End(absl::CancelledError("the watcher is gone"));
  } else if (out_.empty() && !final_) {
    PostDrain();
  }
  Pump();
}

void JobWatch::OnCancel() {
  std::lock_guard lock(mutex_);
  out_.clear();
  End(absl::CancelledError("the watcher is gone"));
  Pump();
}

void JobWatch::OnDone() {
  // Declared before the lock, so destroyed after it is released.
  std::shared_ptr<JobWatch> self;
  std::shared_ptr<WatchHub::Subscription> subscription;
  std::lock_guard lock(mutex_);
  self.swap(self_);
  subscription.swap(subscription_);
  context_ = nullptr;
}

void WatchList::Add(const std::shared_ptr<JobWatch>& watch) {
  std::lock_guard lock(mutex_);
  std::erase_if(watches_, [](const auto& weak) { return weak.expired(); });
  watches_.push_back(watch);
}

void WatchList::Tick() {
  std::vector<std::weak_ptr<JobWatch>> watches;
  {
    std::lock_guard lock(mutex_);
    watches = watches_;
  }
  for (const auto& weak : watches) {
    if (auto watch = weak.lock()) watch->Tick();
  }
}

size_t WatchList::size() {
  std::lock_guard lock(mutex_);
  return static_cast<size_t>(
      std::count_if(watches_.begin(), watches_.end(), [](const auto& weak) { return !weak.expired(); }));
}

grpc::ServerWriteReactor<v1::WatchJobResponse>* JobServiceImpl::WatchJob(
    Context* context, const v1::WatchJobRequest* request) {
  const auto caller = Authorize(edge_, context, kMethod);
  const auto id = ParseName(request->name(), "jobs", "name");
  auto watch = std::make_shared<JobWatch>(edge_, context, id.value_or(""),
                                          caller.ok() ? caller->Scope() : "", *request);
  if (!caller.ok() || !id.ok()) {
    watch->Refuse(caller.ok() ? id.status() : caller.status());
  } else {
    watches_.Add(watch);
    watch->Start();
  }
  return watch.get();
}

}  // namespace nibble::server
