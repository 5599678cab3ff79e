#include "worker/attempt_files.h"

#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "base/digest.h"
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

absl::StatusOr<std::string> AttemptFiles::FetchData(const Assignment& assignment,
                                                    const FileRef& file, const std::string& folder,
                                                    const BlobCache::Fetch& fetch) const {
  // Under a name of our own: what users call their files is no business of a path here.
  const FileRef named{"rows.jsonl", file.sha256, file.size_bytes};
  const std::string directory = JoinPath(DirOf(assignment.key, assignment.token), folder);
  RETURN_IF_ERROR(cache_.LinkInto(assignment.key.ToString(), {named}, directory, fetch));
  return JoinPath(directory, named.name);
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
    files.model_dir = a.base_path;
  } else {
    ASSIGN_OR_RETURN(files.model_dir, cache_.GetModel(owner, a.base_digest, a.base_files, fetch));
  }
  if (cancelled()) return absl::CancelledError("no longer wanted");
  if (shares_file_system_ && !a.dataset_path.empty() && FileExists(a.dataset_path)) {
    files.dataset_path = a.dataset_path;
  } else if (a.dataset) {
    ASSIGN_OR_RETURN(files.dataset_path, FetchData(a, *a.dataset, "data", fetch));
  }
  if (shares_file_system_ && !a.eval_dataset_path.empty() && FileExists(a.eval_dataset_path)) {
    files.eval_dataset_path = a.eval_dataset_path;
  } else if (a.eval_dataset) {
    ASSIGN_OR_RETURN(files.eval_dataset_path, FetchData(a, *a.eval_dataset, "eval", fetch));
  }
  if (!a.checkpoint_files.empty()) {
    files.resume_dir = JoinPath(dir, absl::StrCat("resume/step-", a.checkpoint_step));
    RETURN_IF_ERROR(cache_.LinkInto(owner, a.checkpoint_files, files.resume_dir, fetch));
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
    ASSIGN_OR_RETURN(const std::string sha256, Sha256HexOfFile(path));
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
