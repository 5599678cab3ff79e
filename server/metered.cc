#include "server/metered.h"

#include <string>
#include <utility>

#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "server/trouble_log.h"

namespace nibble::server {
namespace {

int64_t NowUs() { return RealClock::Get().NowMonotonicUs(); }

const absl::Status& StatusOf(const absl::Status& status) { return status; }
template <typename T>
const absl::Status& StatusOf(const absl::StatusOr<T>& result) {
  return result.status();
}

void Tell(TroubleLog& trouble, const std::string& what, const char* operation, const absl::Status& status,
          bool failed) {
  const TroubleLog::Verdict verdict = trouble.Note(operation, failed, NowUs());
  if (verdict.say == TroubleLog::Say::kWorksAgain) {
    LogInfo(what + ".works_again", {{"operation", operation}, {"after_s", verdict.after_us / 1'000'000}});
  } else if (verdict.say == TroubleLog::Say::kFails) {
    LogError(what + ".fails", {{"operation", operation}, {"status", std::string(status.message())}});
  }
}

class MeteredStore : public store::Store {
  // Before its uses: its type is deduced.
  template <typename Work>
  auto Timed(const char* operation, const Work& work) {
    const int64_t begin_us = NowUs();
    auto result = work();
    const absl::Status& status = StatusOf(result);
    meter_->OnDatabase(operation, NowUs() - begin_us, !status.ok());
    Tell(trouble_, "store", operation, status, !status.ok());
    return result;
  }

 public:
  MeteredStore(std::unique_ptr<store::Store> inner, Meter* meter, StoreHealth* health)
      : inner_(std::move(inner)), meter_(meter), health_(health) {}

  absl::StatusOr<core::State> Load() override {
    return Timed("load", [&] { return inner_->Load(); });
  }
  absl::Status Reread(core::State& state) override {
    return Timed("reread", [&] { return inner_->Reread(state); });
  }
  absl::Status Commit(const core::State& state, const std::vector<core::EventRecord>& records) override {
    absl::Status status = Timed("commit", [&] { return inner_->Commit(state, records); });
    health_->Note("commit", status, NowUs());
    return status;
  }
  absl::StatusOr<std::vector<core::EventRecord>> ReadEvents(std::string_view job_id, int64_t after_sequence,
                                                            int64_t limit) override {
    return Timed("read_events", [&] { return inner_->ReadEvents(job_id, after_sequence, limit); });
  }
  absl::StatusOr<int64_t> PruneEvents(int64_t before_unix_us, int64_t limit) override {
    return Timed("prune_events", [&] { return inner_->PruneEvents(before_unix_us, limit); });
  }

 private:
  std::unique_ptr<store::Store> inner_;
  Meter* meter_;
  StoreHealth* health_;
  TroubleLog trouble_;
};

class MeteredMetricStore : public store::MetricStore {
 public:
  MeteredMetricStore(std::unique_ptr<store::MetricStore> inner, Meter* meter, StoreHealth* health)
      : inner_(std::move(inner)), meter_(meter), health_(health) {}

  absl::Status Append(std::string_view job_id, const std::vector<store::StepMetric>& metrics) override {
    const int64_t begin_us = NowUs();
    const absl::Status status = inner_->Append(job_id, metrics);
    meter_->OnDatabase("append_metrics", NowUs() - begin_us, !status.ok());
    Tell(trouble_, "metrics", "append_metrics", status, !status.ok());
    health_->Note("append_metrics", status, NowUs());
    return status;
  }
  absl::StatusOr<std::vector<store::StepMetric>> Read(std::string_view job_id, int64_t after_step,
                                                      int64_t until_step, int64_t max_points) override {
    return inner_->Read(job_id, after_step, until_step, max_points);
  }
  absl::Status DeleteJob(std::string_view job_id) override { return inner_->DeleteJob(job_id); }
  absl::StatusOr<std::vector<std::string>> JobIds(std::string_view after, int64_t limit) override {
    return inner_->JobIds(after, limit);
  }

 private:
  std::unique_ptr<store::MetricStore> inner_;
  Meter* meter_;
  StoreHealth* health_;
  TroubleLog trouble_;
};

// Callers' mistakes are no failures of the store.
bool IsFailure(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
      return false;
    default:
      return true;
  }
}

class MeteredBlobStore : public BlobStore {
  template <typename Work>
  auto Timed(const char* operation, const Work& work) {
    const int64_t begin_us = NowUs();
    auto result = work();
    meter_->OnArtifact(operation, NowUs() - begin_us, IsFailure(result.status()));
    Tell(trouble_, "blob", operation, result.status(), IsFailure(result.status()));
    return result;
  }

 public:
  MeteredBlobStore(std::unique_ptr<BlobStore> inner, Meter* meter)
      : inner_(std::move(inner)), meter_(meter) {}

  absl::StatusOr<UploadState> Begin(std::string_view sha256, int64_t size_bytes,
                                    std::string_view tag) override {
    const int64_t begin_us = NowUs();
    auto result = inner_->Begin(sha256, size_bytes, tag);
    const bool full = StatusReason(result.status()) == Reason::kStorageFull;
    meter_->OnArtifact("begin", NowUs() - begin_us, full);
    Tell(trouble_, "blob", "begin", result.status(), full);
    return result;
  }
  absl::StatusOr<UploadState> Append(std::string_view upload_id, int64_t offset,
                                     std::string_view data) override {
    return Timed("append", [&] { return inner_->Append(upload_id, offset, data); });
  }
  absl::StatusOr<UploadState> Finish(std::string_view upload_id) override {
    return Timed("finish", [&] { return inner_->Finish(upload_id); });
  }
  absl::StatusOr<UploadState> Get(std::string_view upload_id) override { return inner_->Get(upload_id); }
  absl::StatusOr<int64_t> SizeBytes(std::string_view sha256) override { return inner_->SizeBytes(sha256); }
  absl::StatusOr<std::string> Read(std::string_view sha256, int64_t offset, int64_t max_bytes) override {
    return Timed("read", [&] { return inner_->Read(sha256, offset, max_bytes); });
  }
  std::string PathOf(std::string_view sha256) const override { return inner_->PathOf(sha256); }
  absl::Status Pin(std::string_view sha256) override { return inner_->Pin(sha256); }
  absl::StatusOr<std::vector<std::string>> Unpinned() override { return inner_->Unpinned(); }
  absl::StatusOr<CollectResult> Remove(const std::vector<std::string>& sha256s) override {
    return inner_->Remove(sha256s);
  }
  absl::StatusOr<CollectResult> SweepUploads() override { return inner_->SweepUploads(); }
  int64_t TotalBytes() override { return inner_->TotalBytes(); }
  int64_t OpenUploads() override { return inner_->OpenUploads(); }

 private:
  std::unique_ptr<BlobStore> inner_;
  Meter* meter_;
  TroubleLog trouble_;
};

}  // namespace

std::unique_ptr<store::Store> NewMeteredStore(std::unique_ptr<store::Store> store, Meter* meter,
                                              StoreHealth* health) {
  return std::make_unique<MeteredStore>(std::move(store), meter, health);
}
std::unique_ptr<store::MetricStore> NewMeteredMetricStore(std::unique_ptr<store::MetricStore> store,
                                                          Meter* meter, StoreHealth* health) {
  return std::make_unique<MeteredMetricStore>(std::move(store), meter, health);
}
std::unique_ptr<BlobStore> NewMeteredBlobStore(std::unique_ptr<BlobStore> store, Meter* meter) {
  return std::make_unique<MeteredBlobStore>(std::move(store), meter);
}

}  // namespace nibble::server
