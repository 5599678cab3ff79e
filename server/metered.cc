#include "server/metered.h"

#include <utility>

#include "base/clock.h"

namespace nibble::server {
namespace {

int64_t NowUs() { return RealClock::Get().NowMonotonicUs(); }

class MeteredStore : public store::Store {
  // Before its uses: its type is deduced.
  template <typename Work>
  auto Timed(const char* operation, const Work& work) {
    const int64_t begin_us = NowUs();
    auto result = work();
    meter_->OnDatabase(operation, NowUs() - begin_us);
    return result;
  }

 public:
  MeteredStore(std::unique_ptr<store::Store> inner, Meter* meter) : inner_(std::move(inner)), meter_(meter) {}

  absl::StatusOr<core::State> Load() override {
    return Timed("load", [&] { return inner_->Load(); });
  }
  absl::Status Commit(const core::State& state, const std::vector<core::EventRecord>& records) override {
    return Timed("commit", [&] { return inner_->Commit(state, records); });
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
};

class MeteredMetricStore : public store::MetricStore {
 public:
  MeteredMetricStore(std::unique_ptr<store::MetricStore> inner, Meter* meter)
      : inner_(std::move(inner)), meter_(meter) {}

  absl::Status Append(std::string_view job_id, const std::vector<store::StepMetric>& metrics) override {
    const int64_t begin_us = NowUs();
    const absl::Status status = inner_->Append(job_id, metrics);
    meter_->OnDatabase("append_metrics", NowUs() - begin_us);
    return status;
  }
  absl::StatusOr<std::vector<store::StepMetric>> Read(std::string_view job_id, int64_t after_step,
                                                      int64_t until_step, int64_t max_points) override {
    return inner_->Read(job_id, after_step, until_step, max_points);
  }
  absl::Status DeleteJob(std::string_view job_id) override { return inner_->DeleteJob(job_id); }
  absl::Status PutUpload(const store::Upload& upload) override { return inner_->PutUpload(upload); }
  absl::StatusOr<std::optional<store::Upload>> GetUpload(std::string_view id) override {
    return inner_->GetUpload(id);
  }
  absl::StatusOr<std::vector<store::Upload>> ListUploads() override { return inner_->ListUploads(); }
  absl::Status DeleteUpload(std::string_view id) override { return inner_->DeleteUpload(id); }

 private:
  std::unique_ptr<store::MetricStore> inner_;
  Meter* meter_;
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
    return result;
  }

 public:
  MeteredBlobStore(std::unique_ptr<BlobStore> inner, Meter* meter)
      : inner_(std::move(inner)), meter_(meter) {}

  absl::StatusOr<UploadState> Begin(std::string_view sha256, int64_t size_bytes,
                                    std::string_view tag) override {
    return inner_->Begin(sha256, size_bytes, tag);
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
};

}  // namespace

std::unique_ptr<store::Store> NewMeteredStore(std::unique_ptr<store::Store> store, Meter* meter) {
  return std::make_unique<MeteredStore>(std::move(store), meter);
}
std::unique_ptr<store::MetricStore> NewMeteredMetricStore(std::unique_ptr<store::MetricStore> store,
                                                          Meter* meter) {
  return std::make_unique<MeteredMetricStore>(std::move(store), meter);
}
std::unique_ptr<BlobStore> NewMeteredBlobStore(std::unique_ptr<BlobStore> store, Meter* meter) {
  return std::make_unique<MeteredBlobStore>(std::move(store), meter);
}

}  // namespace nibble::server
