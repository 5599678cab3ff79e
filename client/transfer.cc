#include "client/transfer.h"

#include <fcntl.h>
#include <grpcpp/channel.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/digest.h"
#include "base/error.h"
#include "base/file.h"
#include "base/partial_file.h"
#include "base/status.h"
#include "client/patience.h"
#include "nibble/v1/adapter.grpc.pb.h"
#include "nibble/v1/blob.grpc.pb.h"
#include "proto/from_grpc.h"

namespace nibble::client {
namespace {

constexpr size_t kChunkBytes = size_t{1} << 20;

class File {
 public:
  File(const std::string& path, int flags) : fd_(open(path.c_str(), flags | O_CLOEXEC, 0644)) {}
  ~File() {
    if (fd_ >= 0) close(fd_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

// Equal bytes are one upload, whoever sends them: another sender may have finished it meanwhile
// (UPLOAD_NOT_FOUND) or be ahead of us (OFFSET_MISMATCH). Beginning again tells which.
bool CanResume(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsAborted(status) ||
         absl::IsDeadlineExceeded(status) || absl::IsCancelled(status) ||
         StatusReason(status) == Reason::kOffsetMismatch ||
         StatusReason(status) == Reason::kUploadNotFound;
}

// Sends from the committed offset to the end, or until the stream breaks.
absl::Status SendOnce(const Client& client, v1::BlobService::Stub& stub, int fd,
                      v1::UploadStatus& status, const OnBytes& on_bytes) {
  grpc::ClientContext context;
  client.Prepare(context, 0);
  v1::UploadStatus answer;
  const auto writer = stub.Upload(&context, &answer);
  int64_t offset = status.committed_bytes();
  std::string buffer(kChunkBytes, '\0');
  bool first = true;
  absl::Status local;
  while (first || offset < status.size_bytes()) {
    const ssize_t got = pread(fd, buffer.data(), buffer.size(), offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 || (got == 0 && offset < status.size_bytes())) {
      local = got < 0 ? ErrnoStatus(errno, "read")
                      : Error(Reason::kDigestMismatch, "the file became shorter while it was sent")
                            .ToStatus();
      context.TryCancel();
      break;
    }
    v1::UploadChunk chunk;
    if (first) chunk.set_upload_id(status.upload_id());
    chunk.set_offset(offset);
    chunk.set_data(buffer.data(), static_cast<size_t>(got));
    first = false;
    if (!writer->Write(chunk)) break;
    offset += got;
    if (on_bytes) on_bytes(offset, status.size_bytes());
  }
  writer->WritesDone();
  const absl::Status finished = FromGrpc(writer->Finish());
  if (!local.ok()) return local;
  if (finished.ok()) status = answer;
  return finished;
}

absl::StatusOr<v1::UploadStatus> Begin(const Client& client, v1::BlobService::Stub& stub,
                                       const v1::BeginUploadRequest& request, Patience& patience) {
  while (true) {
    grpc::ClientContext context;
    client.Prepare(context, client.options().call_timeout_ms);
    v1::UploadStatus status;
    const absl::Status outcome = FromGrpc(stub.BeginUpload(&context, request, &status));
    if (outcome.ok()) {
      client.set_reached();
      return status;
    }
    if (!IsAway(outcome) || !patience.Again(outcome)) return outcome;
  }
}

absl::Status ReceiveOnce(const Client& client, v1::AdapterService::Stub& stub,
                         const v1::DownloadAdapterRequest& request, int64_t size, PartialFile& out,
                         const OnBytes& on_bytes) {
  grpc::ClientContext context;
  client.Prepare(context, 0);
  const auto reader = stub.DownloadAdapter(&context, request);
  v1::DownloadAdapterResponse chunk;
  absl::Status local;
  while (local.ok() && reader->Read(&chunk)) {
    if (chunk.offset() != out.offset()) {
      local =
          Error(Reason::kOffsetMismatch, absl::StrCat("the server sent bytes at ", chunk.offset(),
                                                      ", expected ", out.offset()))
              .ToStatus();
    } else {
      local = out.Append(chunk.data());
    }
    if (local.ok() && on_bytes) on_bytes(out.offset(), size);
  }
  if (!local.ok()) context.TryCancel();
  const absl::Status finished = FromGrpc(reader->Finish());
  return local.ok() ? finished : local;
}

// Until the file is whole, over as many streams as it takes.
absl::Status Receive(const Client& client, const std::string& adapter, const v1::AdapterFile& file,
                     PartialFile& out, const OnBytes& on_bytes) {
  const auto stub = v1::AdapterService::NewStub(client.channel());
  v1::DownloadAdapterRequest request;
  request.set_name(adapter);
  request.set_file(file.name());
  Patience patience(client);
  while (!out.IsWhole()) {
    const int64_t before = out.offset();
    request.set_offset(before);
    const absl::Status got = ReceiveOnce(client, *stub, request, file.size_bytes(), out, on_bytes);
    if (!got.ok() && !CanResume(got)) return got;
    if (out.IsWhole()) break;
    if (out.offset() > before) patience.Reset();
    const absl::Status why = got.ok() ? absl::DataLossError("the server sends no bytes") : got;
    if (!patience.Again(why)) return why;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> DigestOf(int fd, const std::string& path, int64_t size, const OnBytes& on_read) {
  Sha256 hash;
  std::string buffer(kChunkBytes, '\0');
  for (int64_t offset = 0;;) {
    const ssize_t got = pread(fd, buffer.data(), buffer.size(), offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ErrnoStatus(errno, "read " + path);
    if (got == 0) return hash.FinishHex();
    hash.Update(buffer.data(), static_cast<size_t>(got));
    offset += got;
    if (on_read) on_read(offset, size);
  }
}

bool IsPlainName(const std::string& name) {
  return !name.empty() && name.size() < 200 && name[0] != '.' &&
         name.find('/') == std::string::npos && name.find('\0') == std::string::npos;
}

}  // namespace

absl::StatusOr<std::string> UploadFile(Client& client, const std::string& path, const OnBytes& on_read,
                                       const OnBytes& on_bytes) {
  File file(path, O_RDONLY);
  if (file.get() < 0) return ErrnoStatus(errno, "open " + path);
  v1::BeginUploadRequest request;
  ASSIGN_OR_RETURN(const int64_t size, FileSizeBytes(path));
  ASSIGN_OR_RETURN(const std::string digest, DigestOf(file.get(), path, size, on_read));
  request.set_size_bytes(size);
  request.set_sha256(digest);
  const auto stub = v1::BlobService::NewStub(client.channel());
  Patience patience(client);
  ASSIGN_OR_RETURN(v1::UploadStatus status, Begin(client, *stub, request, patience));
  if (status.complete()) return digest;
  while (!status.complete()) {
    const int64_t before = status.committed_bytes();
    const absl::Status sent = SendOnce(client, *stub, file.get(), status, on_bytes);
    if (sent.ok() && status.complete()) break;
    if (!sent.ok() && !CanResume(sent)) return sent;
    // Where the server stands decides where to go on; Begin answers that too, and finds an upload
    // that was swept meanwhile.
    ASSIGN_OR_RETURN(status, Begin(client, *stub, request, patience));
    if (status.complete()) break;
    if (status.committed_bytes() > before) patience.Reset();
    const absl::Status why =
        sent.ok() ? absl::UnavailableError("the server does not finish the upload of " + path)
                  : sent;
    if (!patience.Again(why)) return why;
  }
  if (on_bytes) on_bytes(size, size);
  return digest;
}

absl::Status DownloadAdapterFile(Client& client, const std::string& adapter,
                                 const v1::AdapterFile& file, const std::string& directory,
                                 const OnBytes& on_bytes) {
  if (!IsPlainName(file.name())) {
    return Error(Reason::kNameInvalid,
                 absl::StrCat("the server names a file \"", file.name().substr(0, 100),
                              "\"; a plain file name was expected"))
        .ToStatus();
  }
  const std::string target = JoinPath(directory, file.name());
  if (FileExists(target)) {
    const auto digest = Sha256HexOfFile(target);
    if (digest.ok() && *digest == file.sha256()) return absl::OkStatus();
  }
  const std::string partial = JoinPath(directory, absl::StrCat(".", file.name(), ".part"));
  // Twice: a partial file left by something else fails its digest and is then fetched from the
  // start.
  absl::Status finished;
  for (int round = 0; round < 2; ++round) {
    ASSIGN_OR_RETURN(PartialFile out, PartialFile::Open(partial, file.size_bytes()));
    RETURN_IF_ERROR(Receive(client, adapter, file, out, on_bytes));
    finished = out.Finish(file.sha256(), target, 0644);
    if (StatusReason(finished) != Reason::kDigestMismatch) break;
  }
  return finished;
}

absl::Status DownloadAdapter(Client& client, const v1::Adapter& adapter,
                             const std::string& directory, const OnBytes& on_bytes) {
  RETURN_IF_ERROR(MakeDirs(directory));
  int64_t total = 0;
  for (const auto& file : adapter.files()) total += file.size_bytes();
  int64_t done = 0;
  for (const auto& file : adapter.files()) {
    RETURN_IF_ERROR(
        DownloadAdapterFile(client, adapter.name(), file, directory, [&](int64_t bytes, int64_t) {
          if (on_bytes) on_bytes(done + bytes, total);
        }));
    done += file.size_bytes();
  }
  if (on_bytes) on_bytes(total, total);
  return absl::OkStatus();
}

}  // namespace nibble::client
