// The one way bytes go out: a server stream of chunks from an offset.
//
// One write is outstanding at a time and the next chunk is read when it is done: a slow reader costs one
// chunk of memory. The object deletes itself when the call is over.
#pragma once

#include <functional>
#include <string>
#include <utility>

#include "grpcpp/support/server_callback.h"
#include "server/rpc/call.h"
#include "server/rpc/status.h"

namespace nibble::server {

inline constexpr int64_t kDownloadChunkBytes = int64_t{512} << 10;

template <typename Message>
class DownloadReactor : public grpc::ServerWriteReactor<Message> {
 public:
  // Up to max_bytes from an offset, empty at the end; on the I/O pool.
  using Read = std::function<absl::StatusOr<std::string>(int64_t offset, int64_t max_bytes)>;
  // `find` runs on the loop's thread and says how to read the bytes, or why not.
  DownloadReactor(Edge& edge, grpc::CallbackServerContext* context, const char* method, int64_t offset,
                  std::function<absl::StatusOr<Read>(const Outcome&, const Caller&)> find)
      : edge_(edge), offset_(offset) {
    const auto caller = Authorize(edge, context, method);
    if (!caller.ok()) {
      Stop(caller.status());
      return;
    }
    const bool posted = edge_.loop->Read([this, find = std::move(find), caller](const Outcome& outcome) {
      auto found = find(outcome, *caller);
      if (!found.ok()) {
        Stop(found.status());
        return;
      }
      read_ = *std::move(found);
      Next();
    });
    if (!posted) Stop(Busy(edge_));
  }

  void OnWriteDone(bool ok) override {
    if (ok) {
      Next();
    } else {
      this->Finish(grpc::Status::CANCELLED);
    }
  }
  void OnDone() override { delete this; }

 private:
  void Next() {
    const bool posted = edge_.io->Post([this] {
      auto data = read_(offset_, kDownloadChunkBytes);
      if (!data.ok()) {
        Stop(data.status());
      } else if (data->empty()) {
        this->Finish(grpc::Status::OK);
      } else {
        message_.set_offset(offset_);
        offset_ += static_cast<int64_t>(data->size());
        message_.set_data(*std::move(data));
        this->StartWrite(&message_);
      }
    });
    if (!posted) Stop(Busy(edge_));
  }
  void Stop(const absl::Status& status) { this->Finish(ToGrpcStatus(status)); }

  Edge& edge_;
  Read read_;
  int64_t offset_;
  Message message_;
};

}  // namespace nibble::server
