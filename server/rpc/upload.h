// The one way bytes come in: a client stream of chunks, each at the offset where the last one ended.
//
// One read is outstanding at a time, and none while a chunk is being written: the sender is slowed down to
// the disk. A cut stream leaves what arrived durable, so the next one goes on from there. The object
// deletes itself when the call is over.
#pragma once

#include <string>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "grpcpp/support/server_callback.h"
#include "server/rpc/call.h"
#include "server/rpc/status.h"

namespace nibble::server {

inline constexpr int64_t kMaxChunkBytes = int64_t{1} << 20;

// Does what is the same for every message type. Virtual calls, so that it is compiled once.
class UploadSteps {
 public:
  // `scope`: the project that sends, and has to show the bytes it claims; "" for who is trusted.
  UploadSteps(Edge& edge, std::string scope) : edge_(edge), scope_(std::move(scope)) {}
  virtual ~UploadSteps() = default;

 protected:
  // Called once for every chunk, on the gRPC thread; ends in Continue or Stop.
  void Take(const std::string& upload_id, int64_t offset, const std::string& data);
  // The stream ended; ends in Complete or Stop.
  void End();
  virtual void Continue() = 0;
  virtual void Complete(const UploadState& state) = 0;
  virtual void Stop(const absl::Status& status) = 0;

  Edge& edge_;
  std::string scope_;

 private:
  absl::Status Append(int64_t offset, std::string_view data);

  std::string upload_id_;
};

template <typename Chunk, typename Answer>
class UploadReactor : public grpc::ServerReadReactor<Chunk>, private UploadSteps {
 public:
  // `confined`: to the caller's project. Workers are not: they send what jobs of all projects make.
  UploadReactor(Edge& edge, grpc::CallbackServerContext* context, const char* method, bool confined,
                Answer* answer)
      : UploadSteps(edge, ""), answer_(answer) {
    const auto caller = Authorize(edge, context, method);
    if (caller.ok()) {
      if (confined) scope_ = caller->Scope();
      this->StartRead(&chunk_);
    } else {
      this->Finish(ToGrpcStatus(caller.status()));
    }
  }

  void OnReadDone(bool ok) override {
    if (ok) {
      Take(chunk_.upload_id(), chunk_.offset(), chunk_.data());
    } else {
      End();
    }
  }
  void OnDone() override { delete this; }

 private:
  void Continue() override {
    chunk_.Clear();
    this->StartRead(&chunk_);
  }
  void Complete(const UploadState& state) override {
    Fill(state, answer_);
    this->Finish(grpc::Status::OK);
  }
  void Stop(const absl::Status& status) override { this->Finish(ToGrpcStatus(status)); }

  static void Fill(const UploadState& state, Answer* answer) {
    answer->set_upload_id(state.upload_id);
    answer->set_committed_bytes(state.committed_bytes);
    answer->set_complete(state.complete);
    if constexpr (requires { answer->set_sha256(state.sha256); }) {
      answer->set_sha256(state.sha256);
      answer->set_size_bytes(state.size_bytes);
    }
  }

  Answer* answer_;
  Chunk chunk_;
};

// Begins or finds an upload, records the blob when it is there, and calls `answer` from any thread. A project
// (`scope` not "") is told that it is there only when it may use it anyway (blob_owners.h).
void BeginBlobUpload(Edge& edge, const std::string& sha256, int64_t size_bytes, const std::string& scope,
                     std::function<void(absl::StatusOr<UploadState>)> answer);
// UPLOAD_NOT_FOUND when it is an upload of another project.
absl::Status CheckUploadOf(const std::string& scope, std::string_view upload_id);
// Tells the loop of a complete blob before anybody else hears of it; what the project has sent, it has.
void RecordIfComplete(Edge& edge, absl::StatusOr<UploadState> state, const std::string& scope,
                      std::function<void(absl::StatusOr<UploadState>)> answer);

}  // namespace nibble::server
