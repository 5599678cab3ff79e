// What a server reads for a caller, terabytes perhaps, it reads no longer than somebody waits for it.
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/inotify.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <deque>
#include <thread>
#include <vector>

#include "absl/strings/str_replace.h"
#include "nibble/v1/dataset.grpc.pb.h"
#include "nibble/v1/model.grpc.pb.h"
#include "server/testing/served.h"
#include "server/testing/tiny_model.h"

namespace nibble::server {
namespace {

constexpr int kFileThreads = 2;  // of a server

// Says when a file is read again and again.
class Readings {
 public:
  explicit Readings(const std::string& path) : fd_(inotify_init1(IN_CLOEXEC)) {
    EXPECT_GE(inotify_add_watch(fd_, path.c_str(), IN_ACCESS), 0);
  }
  ~Readings() { close(fd_); }
  Readings(const Readings&) = delete;
  Readings& operator=(const Readings&) = delete;
  // More often than it takes to look at a header.
  void Await(const std::atomic<bool>& given_up) {
    std::array<char, 4096> events;
    pollfd wait{fd_, POLLIN, 0};
    for (int i = 0; i < 20 && !given_up;) {
      if (poll(&wait, 1, 100) > 0 && read(fd_, events.data(), events.size()) > 0) ++i;
    }
  }

 private:
  const int fd_;
};

class GoneCallersTest : public ServedTest {
 protected:
  struct Call {
    grpc::ClientContext context;
    std::atomic<bool> answered{false};
  };

  void SetUp() override {
    ServedTest::SetUp();
    models_ = v1::ModelService::NewStub(channel_);
    datasets_ = v1::DatasetService::NewStub(channel_);
  }
  void TearDown() override {
    for (std::thread& caller : callers_) caller.join();
  }

  // Registers a model that takes no room and an hour to be read; returns when its weights are being read.
  grpc::ClientContext& BeginToRegister(const std::string& name) {
    const std::string directory = directory_.Join("models/" + name);
    const std::string weights = directory + "/model.safetensors";
    EXPECT_TRUE(MakeDirs(directory).ok());
    const TinyShape shape{.vocab = 1 << 24, .hidden = 1 << 16, .key_value = 1 << 16, .middle = 64};
    const std::string config = absl::StrReplaceAll(
        TinyConfig(256), {{R"("vocab_size":64)", absl::StrCat(R"("vocab_size":)", shape.vocab)},
                          {R"("hidden_size":32)", absl::StrCat(R"("hidden_size":)", shape.hidden)},
                          {R"("num_attention_heads":2)", R"("num_attention_heads":64)"},
                          {R"("num_key_value_heads":1)", R"("num_key_value_heads":64)"}});
    EXPECT_TRUE(WriteFileAtomic(directory + "/config.json", config).ok());
    EXPECT_TRUE(WriteFileAtomic(directory + "/tokenizer.json", kTinyTokenizer).ok());
    int64_t bytes = 0;
    const std::string header = TinyHeader(shape, bytes);
    EXPECT_TRUE(WriteFileAtomic(weights, header).ok());
    EXPECT_EQ(truncate(weights.c_str(), static_cast<int64_t>(header.size()) + bytes), 0);
    Readings readings(weights);
    Call& call = calls_.emplace_back();
    callers_.emplace_back([this, &call, name] {
      v1::RegisterModelRequest request;
      request.set_path(name);
      v1::Model model;
      const grpc::Status status = models_->RegisterModel(&call.context, request, &model);
      call.answered = true;
      EXPECT_TRUE(status.error_code() == grpc::CANCELLED || status.error_code() == grpc::UNAVAILABLE)
          << status.error_message();
    });
    readings.Await(call.answered);
    return call.context;
  }

  std::unique_ptr<v1::ModelService::Stub> models_;
  std::unique_ptr<v1::DatasetService::Stub> datasets_;
  std::deque<Call> calls_;
  std::vector<std::thread> callers_;
};

TEST_F(GoneCallersTest, KeepNoThreadThatReadsFiles) {
  for (int i = 0; i < kFileThreads; ++i) BeginToRegister(absl::StrCat("vast-", i)).TryCancel();
  ASSERT_TRUE(WriteFileAtomic(directory_.Join("models/rows.jsonl"), "{\"text\":\"a\"}\n").ok());
  v1::CreateDatasetRequest request;
  request.set_path("rows.jsonl");
  v1::Dataset dataset;
  grpc::ClientContext context;
  const grpc::Status status = datasets_->CreateDataset(&context, request, &dataset);
  EXPECT_TRUE(status.ok()) << status.error_message();
}

TEST_F(GoneCallersTest, AServerThatStopsReadsNoFurther) {
  BeginToRegister("vast");
  server_->Stop(0);
}

}  // namespace
}  // namespace nibble::server
