#include "client/watch.h"

#include <grpcpp/channel.h>

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

#include "base/clock.h"
#include "base/error.h"
#include "base/random.h"
#include "nibble/v1/job.grpc.pb.h"
#include "proto/from_grpc.h"

namespace nibble::client {
namespace {

// A stream that ends for one of these reasons is opened again; anything else is the answer.
bool IsCut(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsAborted(status) || absl::IsInternal(status) ||
         absl::IsDeadlineExceeded(status) || absl::IsUnknown(status) || absl::IsCancelled(status);
}

}  // namespace

bool IsTerminal(v1::JobState state) {
  return state == v1::SUCCEEDED || state == v1::FAILED || state == v1::CANCELLED;
}

JobWatch::JobWatch(Client& client, std::string name, Options options)
    : client_(client),
      name_(std::move(name)),
      options_(std::move(options)),
      last_sequence_(options_.after_sequence),
      last_step_(options_.after_step) {}
JobWatch::~JobWatch() = default;

bool JobWatch::Deliver(const v1::WatchJobResponse& update, const OnUpdate& on_update) {
  if (update.has_event()) {
    if (update.event().sequence() <= last_sequence_) return true;
    last_sequence_ = update.event().sequence();
    if (IsTerminal(update.event().state())) terminal_ = true;
  } else if (update.has_metric()) {
    last_step_ = std::max(last_step_, update.metric().step());
  } else if (update.has_snapshot()) {
    if (IsTerminal(update.snapshot().state())) terminal_ = true;
  }
  return on_update(update);
}

absl::Status JobWatch::RunOnce(const OnUpdate& on_update, bool& stopped, bool& progressed) {
  grpc::ClientContext context;
  client_.Prepare(context, 0);
  {
    std::lock_guard lock(mutex_);
    if (cancelled_) return absl::CancelledError();
    context_ = &context;
  }
  v1::WatchJobRequest request;
  request.set_name(name_);
  request.set_after_sequence(last_sequence_);
  request.set_after_step(last_step_);
  const auto stub = v1::JobService::NewStub(client_.channel());
  const auto reader = stub->WatchJob(&context, request);
  v1::WatchJobResponse update;
  while (reader->Read(&update)) {
    progressed = true;
    if (!Deliver(update, on_update)) {
      stopped = true;
      context.TryCancel();
      break;
    }
  }
  const absl::Status status = FromGrpc(reader->Finish());
  std::lock_guard lock(mutex_);
  context_ = nullptr;
  return status;
}

absl::Status JobWatch::Run(const OnUpdate& on_update) {
  const Clock& clock = RealClock::Get();
  int64_t cut_since_us = 0;
  for (int attempt = 0; !cancelled_;) {
    bool stopped = false;
    bool progressed = false;
    const absl::Status status = RunOnce(on_update, stopped, progressed);
    if (stopped || cancelled_) return absl::OkStatus();
    if (status.ok() && terminal_) return absl::OkStatus();
    if (!status.ok() && !IsCut(status)) return status;
    if (absl::IsUnavailable(status)) client_.RenewTrust();
    if (progressed) {
      attempt = 0;
      cut_since_us = 0;
    }
    const int64_t now_us = clock.NowMonotonicUs();
    if (cut_since_us == 0) cut_since_us = now_us;
    if (!status.ok() && now_us - cut_since_us > options_.patience_ms * 1000) return status;
    if (!status.ok() && options_.on_cut && attempt == 0) options_.on_cut(status);
    // Slept in short pieces, so that Cancel is heard.
    int64_t wait_ms = BackoffMs(client_.options().first_backoff_ms, attempt++, SystemEntropy());
    while (wait_ms > 0 && !cancelled_) {
      const int64_t piece_ms = std::min<int64_t>(wait_ms, 50);
      std::this_thread::sleep_for(std::chrono::milliseconds(piece_ms));
      wait_ms -= piece_ms;
    }
  }
  return absl::OkStatus();
}

void JobWatch::Cancel() {
  cancelled_ = true;
  std::lock_guard lock(mutex_);
  if (context_) context_->TryCancel();
}

}  // namespace nibble::client
