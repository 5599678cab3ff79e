#include "worker/server_client.h"

#include <fcntl.h>
#include <grpcpp/channel.h>
#include <grpcpp/support/channel_arguments.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <mutex>
#include <optional>
#include <set>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "base/status.h"
#include "nibble/worker/v1/worker.grpc.pb.h"
#include "proto/endpoint.h"
#include "proto/from_grpc.h"
#include "proto/trusted_channel.h"
#include "worker/convert.h"

namespace nibble::worker {
namespace {

constexpr size_t kChunkBytes = size_t{1} << 20;

// Answers that would be the same next time. Everything else is worth another try.
bool IsFinal(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kAlreadyExists:
    case absl::StatusCode::kUnimplemented:
      return true;
    default:
      return false;
  }
}

// Equal bytes are one upload, whoever brings them: two jobs may meet over a file. The other has
// finished it (NOT_FOUND) or is ahead (OUT_OF_RANGE); asking again tells which.
bool MetAnother(const absl::Status& status) {
  return absl::IsNotFound(status) || absl::IsOutOfRange(status);
}
constexpr int kMostMeetings = 50;
constexpr std::chrono::milliseconds kMeetingPause{100};

class ServerClient : public ServerLink {
 public:
  ServerClient(ServerClientOptions options, WorkerIdentity identity,
               std::unique_ptr<TrustedChannel> channel)
      : options_(std::move(options)), identity_(std::move(identity)), channel_(std::move(channel)) {}

  RegisterReply Register(const DoRegister& action) override {
    Call call(*this, options_.call_timeout_ms);
    v1::RegisterResponse response;
    const absl::Status status =
        FromGrpc(call.stub->Register(&call.context, ToProto(identity_, action), &response));
    Note("register", status);
    if (status.ok()) return FromProto(response);
    RegisterReply reply;
    reply.superseded = absl::IsAborted(status) || StatusReason(status) == Reason::kStaleAttempt;
    return reply;
  }

  SynchronizeReply Synchronize(const DoSynchronize& action) override {
    Call call(*this, options_.synchronize_timeout_ms);
    {
      std::lock_guard lock(mutex_);
      synchronizing_ = &call.context;
      synchronizing_id_ = action.request.id;
      if (synchronizing_id_ < newest_id_) call.context.TryCancel();
    }
    v1::SynchronizeResponse response;
    const absl::Status status =
        FromGrpc(call.stub->Synchronize(&call.context, ToProto(identity_, action), &response));
    {
      std::lock_guard lock(mutex_);
      synchronizing_ = nullptr;
    }
    // A call given up for a newer one says nothing about the server.
    if (!absl::IsCancelled(status)) Note("synchronize", status);
    if (status.ok()) return FromProto(action.request.id, response);
    SynchronizeReply reply;
    reply.id = action.request.id;
    reply.code = SynchronizeReply::Code::kUnavailable;
    if (absl::IsNotFound(status)) reply.code = SynchronizeReply::Code::kRegisterAgain;
    if (StatusReason(status) == Reason::kStaleAttempt)
      reply.code = SynchronizeReply::Code::kSuperseded;
    return reply;
  }

  void CancelSynchronizeBefore(int64_t id) override {
    std::lock_guard lock(mutex_);
    newest_id_ = id;
    if (synchronizing_ && synchronizing_id_ < id) synchronizing_->TryCancel();
  }

  ReportReply Report(const DoReport& action) override {
    Call call(*this, options_.call_timeout_ms);
    v1::ReportProgressResponse response;
    const absl::Status status =
        FromGrpc(call.stub->ReportProgress(&call.context, ToProto(identity_, action), &response));
    ReportReply reply;
    reply.id = action.report.id;
    reply.message = std::string(status.message());
    if (status.ok()) {
      reply.code = ReportReply::Code::kOk;
    } else if (StatusReason(status) == Reason::kStaleAttempt) {
      reply.code = ReportReply::Code::kStale;
    } else {
      reply.code = IsFinal(status) ? ReportReply::Code::kRefused : ReportReply::Code::kUnavailable;
    }
    return reply;
  }

  absl::Status FetchBlob(const std::string& sha256, int64_t offset,
                         const std::function<absl::Status(std::string_view)>& write,
                         const std::function<bool()>& cancelled) override {
    Call call(*this, 0);
    v1::FetchBlobRequest request;
    request.set_worker_id(identity_.worker_id);
    request.set_sha256(sha256);
    request.set_offset(offset);
    const auto reader = call.stub->FetchBlob(&call.context, request);
    v1::FetchBlobResponse chunk;
    absl::Status local;
    while (local.ok() && reader->Read(&chunk)) {
      if (chunk.offset() != offset) {
        local = Error(Reason::kOffsetMismatch, absl::StrCat("the server sent bytes at ",
                                                            chunk.offset(), ", expected ", offset))
                    .ToStatus();
      } else if (cancelled()) {
        local = absl::CancelledError("no longer wanted");
      } else {
        local = write(chunk.data());
        offset += static_cast<int64_t>(chunk.data().size());
      }
    }
    if (!local.ok()) call.context.TryCancel();
    const absl::Status finished = FromGrpc(reader->Finish());
    return local.ok() ? finished : local;
  }

  absl::Status PutBlob(const AttemptKey& key, const std::string& token, const FileRef& file,
                       const std::string& path, const std::function<bool()>& cancelled) override {
    v1::BeginBlobRequest begin;
    *begin.mutable_fence() = FenceOf(identity_, key, token);
    begin.set_sha256(file.sha256);
    begin.set_size_bytes(file.size_bytes);
    // A cut stream is resumed here as long as it brings bytes forward; beyond that the agent
    // decides when to try again.
    int64_t before = -1;
    int meetings = 0;
    while (true) {
      v1::BlobStatus status;
      {
        Call call(*this, options_.call_timeout_ms);
        RETURN_IF_ERROR(FromGrpc(call.stub->BeginBlob(&call.context, begin, &status)));
      }
      if (status.complete()) return absl::OkStatus();
      if (cancelled()) return absl::CancelledError("no longer wanted");
      const absl::Status sent = SendFrom(status, file, path, cancelled);
      if (sent.ok() && status.complete()) return sent;
      if (MetAnother(sent) && ++meetings <= kMostMeetings) {
        std::this_thread::sleep_for(kMeetingPause);
        continue;
      }
      if (!sent.ok() && (IsFinal(sent) || status.committed_bytes() <= before)) return sent;
      if (sent.ok() && status.committed_bytes() <= before)
        return absl::UnavailableError("the upload does not end");
      before = status.committed_bytes();
    }
  }

  void Shutdown() override {
    std::lock_guard lock(mutex_);
    down_ = true;
    for (grpc::ClientContext* context : open_) context->TryCancel();
  }

 private:
  // A call that Shutdown can find.
  struct Call {
    Call(ServerClient& owner_in, int64_t timeout_ms)
        : owner(owner_in), stub(v1::WorkerService::NewStub(owner.channel_->Get())) {
      if (timeout_ms > 0) {
        context.set_deadline(std::chrono::system_clock::now() +
                             std::chrono::milliseconds(timeout_ms));
      }
      if (!owner.options_.token.empty())
        context.AddMetadata("authorization", "Bearer " + owner.options_.token);
      std::lock_guard lock(owner.mutex_);
      owner.open_.insert(&context);
      if (owner.down_) context.TryCancel();
    }
    ~Call() {
      std::lock_guard lock(owner.mutex_);
      owner.open_.erase(&context);
    }
    ServerClient& owner;
    const std::unique_ptr<v1::WorkerService::Stub> stub;
    grpc::ClientContext context;
  };

  // Says when the link goes down, for another reason than before, or comes back. While it is down the server
  // may have another authority's certificate by now, and our file that authority.
  void Note(std::string_view call, const absl::Status& status) {
    if ((absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status)) && channel_->Renew())
      LogInfo("server.trusted_anew", {{"ca_file", options_.ca_file}});
    std::lock_guard lock(mutex_);
    if (status.code() == link_code_ || down_) return;
    link_code_ = status.code();
    if (status.ok()) return LogInfo("server.reached", {{"call", call}});
    LogWarning("server.unreachable", {{"call", call}, {"why", std::string(status.message())}});
  }

  absl::Status SendFrom(v1::BlobStatus& status, const FileRef& file, const std::string& path,
                        const std::function<bool()>& cancelled) {
    const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) return ErrnoStatus(errno, "open " + path);
    Call call(*this, 0);
    v1::BlobStatus answer;
    const auto writer = call.stub->PutBlob(&call.context, &answer);
    std::string buffer(kChunkBytes, '\0');
    int64_t offset = status.committed_bytes();
    absl::Status local;
    for (bool first = true; first || offset < file.size_bytes; first = false) {
      const ssize_t got = pread(fd, buffer.data(), buffer.size(), offset);
      if (got < 0 || (got == 0 && offset < file.size_bytes))
        local = absl::DataLossError("cannot read " + path);
      if (cancelled()) local = absl::CancelledError("no longer wanted");
      if (!local.ok()) {
        call.context.TryCancel();
        break;
      }
      v1::BlobChunk chunk;
      if (first) chunk.set_upload_id(status.upload_id());
      chunk.set_offset(offset);
      chunk.set_data(buffer.data(), static_cast<size_t>(got));
      if (!writer->Write(chunk)) break;
      offset += got;
    }
    close(fd);
    writer->WritesDone();
    const absl::Status finished = FromGrpc(writer->Finish());
    if (finished.ok()) status = answer;
    return local.ok() ? finished : local;
  }

  const ServerClientOptions options_;
  const WorkerIdentity identity_;
  const std::unique_ptr<TrustedChannel> channel_;
  std::mutex mutex_;  // guards what follows
  std::set<grpc::ClientContext*> open_;
  grpc::ClientContext* synchronizing_ = nullptr;
  int64_t synchronizing_id_ = 0;
  int64_t newest_id_ = 0;
  std::optional<absl::StatusCode> link_code_;  // of the last answer
  bool down_ = false;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ServerLink>> ConnectToServer(ServerClientOptions options,
                                                            WorkerIdentity identity) {
  RETURN_IF_ERROR(CheckToken(options.token));
  grpc::ChannelArguments arguments;
  // The library's own maximum is 120 s, longer than a lease.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 200);
  // Also the time a connection may need, and the wait after one that failed: well below a short
  // lease.
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 3'000);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2'000);
  // A dead peer is noticed while a call is out; servers allow pings this often.
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 30'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetMaxReceiveMessageSize(16 << 20);
  ASSIGN_OR_RETURN(auto channel, TrustedChannel::Open(options.server, options.ca_file, arguments));
  return std::unique_ptr<ServerLink>(
      std::make_unique<ServerClient>(std::move(options), std::move(identity), std::move(channel)));
}

}  // namespace nibble::worker
