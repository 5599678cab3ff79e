// The client library against a server in this process that breaks off when told to.
#include "client/client.h"

#include <gmock/gmock.h>
#include <grpcpp/channel.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <gtest/gtest.h>

#include <map>
#include <mutex>
#include <set>

#include "base/digest.h"
#include "base/error.h"
#include "base/file.h"
#include "client/transfer.h"
#include "client/watch.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "nibble/v1/adapter.grpc.pb.h"
#include "nibble/v1/blob.grpc.pb.h"
#include "nibble/v1/job.grpc.pb.h"

namespace nibble::client {
namespace {

using grpc::ServerContext;
using grpc::Status;
using grpc::StatusCode;
using testing::ElementsAre;

// Held by a handler until it answers, and by the test while it looks at what handlers noted: the order that
// there is anyway comes over a socket, which no sanitizer follows.
std::mutex handling;

class Jobs : public v1::JobService::Service {
 public:
  Status GetJob(ServerContext*, const v1::GetJobRequest* request, v1::Job* job) override {
    std::lock_guard lock(handling);
    if (++gets_ <= unavailable_) return {StatusCode::UNAVAILABLE, "not now"};
    if (request->name() == "jobs/none") {
      google::rpc::Status details;
      details.set_code(StatusCode::NOT_FOUND);
      google::rpc::ErrorInfo info;
      info.set_reason("JOB_NOT_FOUND");
      (*info.mutable_metadata())["job"] = "none";
      details.add_details()->PackFrom(info);
      google::rpc::BadRequest bad;
      auto* violation = bad.add_field_violations();
      violation->set_field("name");
      violation->set_description("names no job");
      details.add_details()->PackFrom(bad);
      return {StatusCode::NOT_FOUND, "no such job", details.SerializeAsString()};
    }
    job->set_name(request->name());
    return Status::OK;
  }
  Status CreateJob(ServerContext*, const v1::CreateJobRequest* request, v1::Job*) override {
    std::lock_guard lock(handling);
    request_ids_.insert(request->request_id());
    return ++creates_ <= unavailable_ ? Status(StatusCode::UNAVAILABLE, "not now") : Status::OK;
  }
  Status DeleteJob(ServerContext*, const v1::DeleteJobRequest*, v1::DeleteJobResponse*) override {
    std::lock_guard lock(handling);
    ++deletes_;
    return {StatusCode::UNAVAILABLE, "not now"};
  }
  // Five events; breaks off after each.
  Status WatchJob(ServerContext*, const v1::WatchJobRequest* request,
                  grpc::ServerWriter<v1::WatchJobResponse>* writer) override {
    std::lock_guard lock(handling);
    after_.push_back(request->after_sequence());
    v1::WatchJobResponse update;
    update.mutable_snapshot()->set_state(v1::RUNNING);
    writer->Write(update);
    // The last one seen comes again, as after a snapshot of an older state.
    for (int64_t sequence = std::max<int64_t>(1, request->after_sequence()); sequence <= 5;
         ++sequence) {
      update.mutable_event()->set_sequence(sequence);
      update.mutable_event()->set_state(sequence == 5 ? v1::SUCCEEDED : v1::RUNNING);
      writer->Write(update);
      if (sequence > request->after_sequence() && sequence < 5)
        return {StatusCode::UNAVAILABLE, "going down"};
    }
    return Status::OK;
  }
  int unavailable_ = 0;
  int gets_ = 0;
  int creates_ = 0;
  int deletes_ = 0;
  std::set<std::string> request_ids_;
  std::vector<int64_t> after_;
};

// Commits each chunk at once; breaks every stream after `chunks_` of them.
class Blobs : public v1::BlobService::Service {
 public:
  Status BeginUpload(ServerContext*, const v1::BeginUploadRequest* request,
                     v1::UploadStatus* status) override {
    std::lock_guard lock(handling);
    if (--unavailable_ >= 0) return {StatusCode::UNAVAILABLE, "not now"};
    sha256_ = request->sha256();
    size_ = request->size_bytes();
    Fill(status);
    return Status::OK;
  }
  Status Upload(ServerContext*, grpc::ServerReader<v1::UploadChunk>* reader,
                v1::UploadStatus* status) override {
    std::lock_guard lock(handling);
    ++streams_;
    v1::UploadChunk chunk;
    for (int i = 0; reader->Read(&chunk); ++i) {
      if (i == 0 && chunk.upload_id() != "u") return {StatusCode::INVALID_ARGUMENT, "no upload_id"};
      if (i == chunks_) return {StatusCode::UNAVAILABLE, "cut"};
      if (chunk.offset() != static_cast<int64_t>(bytes_.size()))
        return {StatusCode::OUT_OF_RANGE, "wrong offset"};
      bytes_ += chunk.data();
    }
    Fill(status);
    return Status::OK;
  }
  void Fill(v1::UploadStatus* status) {
    status->set_upload_id("u");
    status->set_size_bytes(size_);
    status->set_committed_bytes(static_cast<int64_t>(bytes_.size()));
    status->set_complete(static_cast<int64_t>(bytes_.size()) == size_ && streams_ > 0);
  }
  int unavailable_ = 0;
  int chunks_ = 1'000'000;
  int streams_ = 0;
  std::string sha256_;
  int64_t size_ = 0;
  std::string bytes_;
};

class Adapters : public v1::AdapterService::Service {
 public:
  Status DownloadAdapter(ServerContext*, const v1::DownloadAdapterRequest* request,
                         grpc::ServerWriter<v1::DownloadAdapterResponse>* writer) override {
    std::lock_guard lock(handling);
    offsets_.push_back(request->offset());
    v1::DownloadAdapterResponse chunk;
    size_t at = static_cast<size_t>(request->offset());
    for (int i = 0; at < content_.size(); ++i) {
      if (i == chunks_) return {StatusCode::UNAVAILABLE, "cut"};
      chunk.set_offset(static_cast<int64_t>(at));
      chunk.set_data(content_.substr(at, 4));
      writer->Write(chunk);
      at += 4;
    }
    return Status::OK;
  }
  int chunks_ = 1'000'000;
  std::string content_;
  std::vector<int64_t> offsets_;
};

class ClientTest : public testing::Test {
 protected:
  void SetUp() override {
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(&jobs_);
    builder.RegisterService(&blobs_);
    builder.RegisterService(&adapters_);
    server_ = builder.BuildAndStart();
    ASSERT_NE(port, 0);
    ClientOptions options;
    options.server = "127.0.0.1:" + std::to_string(port);
    options.first_backoff_ms = 1;
    options.patience_ms = 1'000;
    options.on_away = [this](const absl::Status&) { ++away_; };
    auto client = Client::Connect(options);
    ASSERT_TRUE(client.ok()) << client.status();
    client_ = std::move(*client);
  }
  v1::AdapterFile File(const std::string& name, const std::string& content) {
    adapters()->content_ = content;
    v1::AdapterFile file;
    file.set_name(name);
    file.set_size_bytes(static_cast<int64_t>(content.size()));
    file.set_sha256(Sha256Hex(content));
    return file;
  }
  // `handling` held to the end of the expression.
  template <typename Service>
  struct Settled {
    Service* operator->() const { return service; }
    Service* service;
    std::lock_guard<std::mutex> lock{handling};
  };
  Settled<Jobs> jobs() { return {&jobs_}; }
  Settled<Blobs> blobs() { return {&blobs_}; }
  Settled<Adapters> adapters() { return {&adapters_}; }

  Jobs jobs_;
  Blobs blobs_;
  Adapters adapters_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<Client> client_;
  int away_ = 0;
  TempDir dir_;
};

TEST_F(ClientTest, ReadsAreRetriedWhileUnavailable) {
  jobs()->unavailable_ = 3;
  EXPECT_TRUE(client_->GetJob("jobs/a").ok());
  EXPECT_EQ(jobs()->gets_, 4);
  jobs()->gets_ = 0;
  jobs()->unavailable_ = 100;
  EXPECT_TRUE(absl::IsUnavailable(client_->GetJob("jobs/a").status()));
  EXPECT_EQ(jobs()->gets_, 5);
}

TEST_F(ClientTest, CreatingIsRetriedUnderOneRequestId) {
  jobs()->unavailable_ = 2;
  EXPECT_TRUE(client_->CreateJob({}).ok());
  EXPECT_EQ(jobs()->creates_, 3);
  ASSERT_EQ(jobs()->request_ids_.size(), 1u);
  EXPECT_EQ(jobs()->request_ids_.begin()->size(), 36u);
}

TEST_F(ClientTest, WhatIsNotIdempotentIsNeverRepeated) {
  EXPECT_FALSE(client_->DeleteJob("jobs/a").ok());
  EXPECT_EQ(jobs()->deletes_, 1);
}

TEST_F(ClientTest, ErrorsKeepReasonMetadataAndFields) {
  const absl::Status status = client_->GetJob("jobs/none").status();
  EXPECT_TRUE(absl::IsNotFound(status));
  EXPECT_EQ(status.message(), "no such job");
  EXPECT_EQ(StatusReason(status), Reason::kJobNotFound);
  EXPECT_EQ(StatusMetadata(status)["job"], "none");
  ASSERT_EQ(StatusViolations(status).size(), 1u);
  EXPECT_EQ(StatusViolations(status)[0].field, "name");
}

TEST_F(ClientTest, UploadGoesOnWhereItWasCut) {
  const std::string content(5 << 20, 'x');
  ASSERT_TRUE(WriteFileAtomic(dir_.Join("f"), content).ok());
  blobs()->chunks_ = 2;
  int64_t last = 0;
  const auto digest =
      UploadFile(*client_, dir_.Join("f"), nullptr, [&](int64_t done, int64_t) { last = done; });
  ASSERT_TRUE(digest.ok()) << digest.status();
  EXPECT_EQ(*digest, Sha256Hex(content));
  EXPECT_EQ(blobs()->bytes_, content);
  EXPECT_EQ(blobs()->streams_, 3);
  EXPECT_EQ(last, 5 << 20);
}

TEST_F(ClientTest, AnEmptyFileIsUploadedToo) {
  ASSERT_TRUE(WriteFileAtomic(dir_.Join("f"), "").ok());
  EXPECT_TRUE(UploadFile(*client_, dir_.Join("f"), nullptr, nullptr).ok());
  EXPECT_EQ(blobs()->streams_, 1);
}

TEST_F(ClientTest, UploadOutlivesAServerThatIsAway) {
  ASSERT_TRUE(WriteFileAtomic(dir_.Join("f"), "hello").ok());
  blobs()->unavailable_ = 5;
  const auto digest = UploadFile(*client_, dir_.Join("f"), nullptr, nullptr);
  EXPECT_TRUE(digest.ok()) << digest.status();
  EXPECT_EQ(away_, 1) << "said once";
}

TEST_F(ClientTest, UploadGivesUpWhenNothingMoves) {
  ASSERT_TRUE(WriteFileAtomic(dir_.Join("f"), "hello").ok());
  blobs()->chunks_ = 0;
  EXPECT_TRUE(absl::IsUnavailable(UploadFile(*client_, dir_.Join("f"), nullptr, nullptr).status()));
  EXPECT_FALSE(UploadFile(*client_, dir_.Join("missing"), nullptr, nullptr).ok());
}

TEST_F(ClientTest, DownloadGoesOnWhereItWasCut) {
  const v1::AdapterFile file = File("a.bin", "0123456789abcdef");
  adapters()->chunks_ = 2;
  ASSERT_TRUE(DownloadAdapterFile(*client_, "adapters/x", file, dir_.path(), nullptr).ok());
  EXPECT_EQ(*ReadFile(dir_.Join("a.bin")), "0123456789abcdef");
  EXPECT_THAT(adapters()->offsets_, ElementsAre(0, 8));
  // Whole already: nothing is asked again.
  ASSERT_TRUE(DownloadAdapterFile(*client_, "adapters/x", file, dir_.path(), nullptr).ok());
  EXPECT_EQ(adapters()->offsets_.size(), 2u);
}

TEST_F(ClientTest, DownloadUsesAPartOfAnEarlierRun) {
  const v1::AdapterFile file = File("a.bin", "0123456789abcdef");
  ASSERT_TRUE(WriteFileAtomic(dir_.Join(".a.bin.part"), "01234567").ok());
  ASSERT_TRUE(DownloadAdapterFile(*client_, "adapters/x", file, dir_.path(), nullptr).ok());
  EXPECT_THAT(adapters()->offsets_, ElementsAre(8));
  ASSERT_TRUE(RemoveFile(dir_.Join("a.bin")).ok());
  // A part with other bytes fails its digest once and is then fetched whole.
  ASSERT_TRUE(WriteFileAtomic(dir_.Join(".a.bin.part"), "98765432").ok());
  ASSERT_TRUE(DownloadAdapterFile(*client_, "adapters/x", file, dir_.path(), nullptr).ok());
  EXPECT_EQ(*ReadFile(dir_.Join("a.bin")), "0123456789abcdef");
}

TEST_F(ClientTest, DownloadRefusesWrongBytesAndOddNames) {
  v1::AdapterFile file = File("a.bin", "0123456789abcdef");
  file.set_sha256(Sha256Hex("something else"));
  EXPECT_EQ(StatusReason(DownloadAdapterFile(*client_, "adapters/x", file, dir_.path(), nullptr)),
            Reason::kDigestMismatch);
  EXPECT_FALSE(FileExists(dir_.Join("a.bin")));
  file.set_name("../a.bin");
  EXPECT_EQ(StatusReason(DownloadAdapterFile(*client_, "adapters/x", file, dir_.path(), nullptr)),
            Reason::kNameInvalid);
}

TEST_F(ClientTest, WatchReconnectsBySequence) {
  JobWatch watch(*client_, "jobs/a", {});
  std::vector<int64_t> seen;
  const absl::Status status = watch.Run([&](const v1::WatchJobResponse& update) {
    if (update.has_event()) seen.push_back(update.event().sequence());
    return true;
  });
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_THAT(seen, ElementsAre(1, 2, 3, 4, 5));
  EXPECT_THAT(jobs()->after_, ElementsAre(0, 1, 2, 3, 4));
}

TEST_F(ClientTest, WatchStopsWhenTold) {
  JobWatch watch(*client_, "jobs/a", {});
  EXPECT_TRUE(watch.Run([](const v1::WatchJobResponse&) { return false; }).ok());
  EXPECT_EQ(jobs()->after_.size(), 1u);
  watch.Cancel();
  EXPECT_TRUE(watch.Run([](const v1::WatchJobResponse&) { return true; }).ok());
}

TEST(BackoffTest, DoublesWithinBounds) {
  for (int attempt = 0; attempt < 20; ++attempt) {
    for (const uint64_t random : {uint64_t{0}, uint64_t{12345}, ~uint64_t{0}}) {
      const int64_t full = std::min<int64_t>(3000, int64_t{200} << std::min(attempt, 10));
      EXPECT_GE(BackoffMs(200, attempt, random), full / 2);
      EXPECT_LE(BackoffMs(200, attempt, random), full);
    }
  }
}

}  // namespace
}  // namespace nibble::client
