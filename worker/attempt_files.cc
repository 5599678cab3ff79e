#include "worker/attempt_files.h"

#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "base/digest.h"
#include "base/digest_memo.h"
#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "base/status.h"

namespace nibble::worker {

absl::Status AttemptFiles::Clean() const {
  RETURN_IF_ERROR(RemoveAll(JoinPath(work_dir_, "attempts")));
  return MakeDirs(JoinPath(work_dir_, "attempts"));
}

std::string AttemptFiles::DirOf(const AttemptKey& key, const std::string& token) const {
  return JoinPath(work_dir_,
                  absl::StrCat("attempts/", key.job_id, "/", key.epoch, "-", token.substr(0, 8)));
}

absl::StatusOr<bool> AttemptFiles::IsAsRegistered(const std::string& path,
                                                  const FileRef& file,
                                                  const IsCancelled& cancelled) const {
  const std::string memo_dir = JoinPath(work_dir_, "cache/base");
  RETURN_IF_ERROR(MakeDirs(memo_dir));
  const auto size = FileSizeBytes(path);
  if (!size.ok() && !absl::IsNotFound(size.status())) return size.status();
  if (!size.ok() || *size != file.size_bytes) return false;
  ASSIGN_OR_RETURN(const std::string digest, RememberedSha256HexOfFile(path, memo_dir, cancelled));
  return digest == file.sha256;
}

// Mapped where it lies, if it can be. Its owner may write to it at any time; a job that went on with other
// rows would find that none of its checkpoints fits them, and one that begins would not learn what it was
// given. Infrastructure: what was put back is read by the next try.
absl::StatusOr<std::string> AttemptFiles::DataOf(const Assignment& assignment,
                                                 const std::optional<FileRef>& file,
                                                 const std::string& path, const std::string& folder,
                                                 const BlobCache::Fetch& fetch,
                                                 const IsCancelled& cancelled) const {
  if (!file) return "";
  if (!shares_file_system_ || path.empty() || !FileExists(path))
    return FetchData(assignment, *file, folder, fetch, cancelled);
  ASSIGN_OR_RETURN(const bool same, IsAsRegistered(path, *file, cancelled));
  if (same) return path;
  return Error(Reason::kDigestMismatch,
               absl::StrCat(path, " has changed since its data set was registered; put it back as it "
                                  "was, or cancel the job and submit it again with the data as they are now"))
      .ToStatus();
}

absl::StatusOr<std::string> AttemptFiles::FetchData(const Assignment& assignment,
                                                    const FileRef& file, const std::string& folder,
                                                    const BlobCache::Fetch& fetch,
                                                    const IsCancelled& cancelled) const {
  // Under a name of our own: what users call their files is no business of a path here.
  const FileRef named{"rows.jsonl", file.sha256, file.size_bytes};
  const std::string directory = JoinPath(DirOf(assignment.key, assignment.token), folder);
  RETURN_IF_ERROR(cache_.LinkInto(assignment.key.ToString(), {named}, directory, fetch, cancelled));
  return JoinPath(directory, named.name);
}

// A directory that is mapped where it lies is its owner's to change, but not under a job: what was
// planned and begun on one base would go on on another.
absl::Status AttemptFiles::CheckMappedBase(const Assignment& a,
                                           const IsCancelled& cancelled) const {
  for (const FileRef& file : a.base_files) {
    const std::string path = JoinPath(a.base_path, file.name);
    ASSIGN_OR_RETURN(const bool same, IsAsRegistered(path, file, cancelled));
    if (same) continue;
    return Error(
        Reason::kModelFileInvalid,
        absl::StrCat(path, FileExists(path) ? " has changed" : " is gone",
                     " since the model was registered; put it "
                     "back as it was, or submit the job again with the model as it is now"));
  }
  return absl::OkStatus();
}

// What is not there in full, or has other bytes twice, will never be: the job can go on from the
// one before.
absl::Status AttemptFiles::FetchCheckpoint(const Assignment& a, const std::string& directory,
                                           const BlobCache::Fetch& fetch,
                                           const IsCancelled& cancelled) const {
  absl::Status status;
  for (int tries = 0; tries < 2; ++tries) {
    status = cache_.LinkInto(a.key.ToString(), a.checkpoint_files, directory, fetch, cancelled);
    if (StatusReason(status) != Reason::kDigestMismatch) break;
  }
  const Reason reason = StatusReason(status);
  if (reason != Reason::kDigestMismatch && reason != Reason::kBlobNotFound) return status;
  return Error(Reason::kCheckpointInvalid,
               absl::StrCat("the checkpoint of step ", a.checkpoint_step,
                            " is damaged on the server: ", std::string(status.message())));
}

absl::StatusOr<LocalFiles> AttemptFiles::Fetch(const Assignment& a,
                                               const IsCancelled& cancelled) const {
  const BlobCache::Fetch fetch = [&](const std::string& sha256, int64_t offset,
                                     const BlobCache::Write& write) {
    return link_.FetchBlob(sha256, offset, write, cancelled);
  };
  const std::string owner = a.key.ToString();
  // The id becomes part of a path.
  if (!IsPlainFileName(a.key.job_id) || !IsPlainFileName(a.token.substr(0, 8))) {
    return Error(Reason::kNameInvalid, "the job's id is not plain").ToStatus();
  }
  const std::string dir = DirOf(a.key, a.token);
  RETURN_IF_ERROR(MakeDirs(dir));
  LocalFiles files;
  const bool map_base = shares_file_system_ && !a.base_path.empty() && IsDirectory(a.base_path);
  if (map_base) {
    RETURN_IF_ERROR(CheckMappedBase(a, cancelled));
    files.model_dir = a.base_path;
  } else {
    ASSIGN_OR_RETURN(files.model_dir, cache_.GetModel(owner, a.base_digest, a.base_files, fetch, cancelled));
  }
  if (cancelled()) return absl::CancelledError("no longer wanted");
  ASSIGN_OR_RETURN(files.dataset_path, DataOf(a, a.dataset, a.dataset_path, "data", fetch, cancelled));
  ASSIGN_OR_RETURN(files.eval_dataset_path,
                   DataOf(a, a.eval_dataset, a.eval_dataset_path, "eval", fetch, cancelled));
  if (!a.checkpoint_files.empty()) {
    files.resume_dir = JoinPath(dir, absl::StrCat("resume/step-", a.checkpoint_step));
    RETURN_IF_ERROR(FetchCheckpoint(a, files.resume_dir, fetch, cancelled));
  }
  cache_.Shrink();
  return files;
}

absl::StatusOr<std::vector<FileRef>> AttemptFiles::Upload(const AttemptKey& key,
                                                          const std::string& token,
                                                          const std::string& directory,
                                                          const IsCancelled& cancelled) const {
  ASSIGN_OR_RETURN(const std::vector<std::string> names, ListDir(directory));
  std::vector<FileRef> files;
  for (const std::string& name : names) {
    const std::string path = JoinPath(directory, name);
    if (IsDirectory(path)) continue;
    ASSIGN_OR_RETURN(const int64_t size, FileSizeBytes(path));
    ASSIGN_OR_RETURN(const std::string sha256, Sha256HexOfFile(path, cancelled));
    FileRef file{name, sha256, size};
    RETURN_IF_ERROR(link_.PutBlob(key, token, file, path, cancelled));
    files.push_back(std::move(file));
  }
  if (files.empty()) return absl::DataLossError(absl::StrCat(directory, " is empty"));
  return files;
}

void AttemptFiles::Forget(const AttemptKey& key, const std::string& token) const {
  cache_.Unpin(key.ToString());
  const absl::Status removed = RemoveAll(DirOf(key, token));
  if (!removed.ok()) {
    LogWarning("attempt.not_removed",
               {{"attempt", key.ToString()}, {"why", std::string(removed.message())}});
  }
  // Of the job's folder only if this was its last attempt here.
  rmdir(JoinPath(work_dir_, "attempts/" + key.job_id).c_str());
}

}  // namespace nibble::worker
