#include "server/rpc/upload.h"

#include <algorithm>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "server/blob_owners.h"

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
  if (const absl::Status mine = CheckUploadOf(scope_, upload_id_); !mine.ok()) {
    Stop(mine);
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
    RecordIfComplete(edge_, edge_.blobs->Finish(upload_id_), scope_,
                     [this](absl::StatusOr<UploadState> state) {
      if (state.ok()) {
        Complete(*state);
      } else {
        Stop(state.status());
      }
    });
  });
  if (!posted) Stop(Busy(edge_));
}

void BeginBlobUpload(Edge& edge, const std::string& sha256, int64_t size_bytes, const std::string& scope,
                     std::function<void(absl::StatusOr<UploadState>)> answer) {
  const auto begin = [&edge, sha256, size_bytes, scope, answer](bool may_use) {
    const bool posted = edge.io->Post([&edge, sha256, size_bytes, scope, answer, may_use] {
      const bool is_there = may_use && edge.blobs->Pin(sha256).ok();
      RecordIfComplete(edge, edge.blobs->Begin(sha256, size_bytes, is_there ? "" : UploadTag(scope)), scope,
                       answer);
    });
    if (!posted) answer(Busy(edge));
  };
  if (scope.empty()) return begin(true);
  const bool posted = edge.loop->Read([&edge, sha256, scope, begin](const Outcome& outcome) {
    begin(MayUse(outcome.state, scope, sha256));
  });
  if (!posted) answer(Busy(edge));
}

absl::Status CheckUploadOf(const std::string& scope, std::string_view upload_id) {
  if (scope.empty()) return absl::OkStatus();
  const absl::StatusOr<UploadState> state = ParseUploadId(upload_id);
  if (!state.ok()) return state.status();
  if (state->tag == UploadTag(scope)) return absl::OkStatus();
  return Error(Reason::kUploadNotFound, "the upload does not exist; call BeginUpload to start or find it");
}

void RecordIfComplete(Edge& edge, absl::StatusOr<UploadState> state, const std::string& scope,
                      std::function<void(absl::StatusOr<UploadState>)> answer) {
  if (!state.ok() || !state->complete) {
    answer(std::move(state));
    return;
  }
  core::RecordBlob record{state->sha256, state->size_bytes, scope};
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
