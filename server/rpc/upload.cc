#include "server/rpc/upload.h"

#include <algorithm>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace nibble::server {

void UploadSteps::Take(const std::string& upload_id, int64_t offset, const std::string& data) {
  if (upload_id_.empty()) upload_id_ = upload_id;
  if (upload_id_.empty()) {
    Stop(Error::Field(Reason::kSpecInvalid, "upload_id", "is missing in the first chunk"));
    return;
  }
  if (!upload_id.empty() && upload_id != upload_id_) {
    Stop(Error::Field(Reason::kSpecInvalid, "upload_id",
                      "differs from the first chunk's; one stream is one upload"));
    return;
  }
  if (static_cast<int64_t>(data.size()) > kMaxChunkBytes) {
    Stop(Error::Field(Reason::kRequestTooLarge, "data",
                      absl::StrCat("has ", data.size(), " bytes; a chunk has at most ", kMaxChunkBytes)));
    return;
  }
  const bool posted = edge_.io->Post([this, offset, &data] {
    const absl::Status status = Append(offset, data);
    if (status.ok()) {
      Continue();
    } else {
      Stop(status);
    }
  });
  if (!posted) Stop(Busy(edge_));
}

// Bytes that are there already are skipped: two jobs may be sending the same file at once, and each would
// otherwise find the offset moved on by the other. If they differ, the digest tells in the end.
absl::Status UploadSteps::Append(int64_t offset, std::string_view data) {
  for (;;) {
    const absl::Status status = edge_.blobs->Append(upload_id_, offset, data).status();
    if (StatusReason(status) != Reason::kOffsetMismatch) return status;
    int64_t written = 0;
    if (!absl::SimpleAtoi(StatusMetadata(status)["committed_bytes"], &written)) return status;
    if (offset < 0 || written <= offset) return status;
    const int64_t skipped = std::min(written - offset, static_cast<int64_t>(data.size()));
    offset += skipped;
    data.remove_prefix(static_cast<size_t>(skipped));
    if (data.empty()) return absl::OkStatus();
  }
}

void UploadSteps::End() {
  if (upload_id_.empty()) {
    Stop(Error::Field(Reason::kSpecInvalid, "upload_id", "is missing: the stream had no chunk"));
    return;
  }
  const bool posted = edge_.io->Post([this] {
    RecordIfComplete(edge_, edge_.blobs->Finish(upload_id_), [this](absl::StatusOr<UploadState> state) {
      if (state.ok()) {
        Complete(*state);
      } else {
        Stop(state.status());
      }
    });
  });
  if (!posted) Stop(Busy(edge_));
}

void BeginBlobUpload(Edge& edge, const std::string& sha256, int64_t size_bytes,
                     std::function<void(absl::StatusOr<UploadState>)> answer) {
  const bool posted = edge.io->Post([&edge, sha256, size_bytes, answer] {
    RecordIfComplete(edge, edge.blobs->Begin(sha256, size_bytes), answer);
  });
  if (!posted) answer(Busy(edge));
}

void RecordIfComplete(Edge& edge, absl::StatusOr<UploadState> state,
                      std::function<void(absl::StatusOr<UploadState>)> answer) {
  if (!state.ok() || !state->complete) {
    answer(std::move(state));
    return;
  }
  core::RecordBlob record{state->sha256, state->size_bytes};
  const bool posted = edge.loop->Post(std::move(record),
                                      [state, answer](absl::Status status, const Outcome&) {
                                        if (status.ok()) {
                                          answer(state);
                                        } else {
                                          answer(status);
                                        }
                                      });
  if (!posted) answer(Busy(edge));
}

}  // namespace nibble::server
