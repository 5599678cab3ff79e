#include "engine/checkpoint.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/file.h"
#include "base/status.h"
#include "engine/checkpoint_text.h"
#include "engine/model/hashed_file.h"

namespace nibble::engine {
namespace {

constexpr size_t kHistoryPiece = size_t{1} << 20;

// Start of state.bin; little-endian, as everything here.
struct StateHeader {
  char magic[8] = {'N', 'I', 'B', 'B', 'L', 'E', 'C', 'K'};
  uint32_t version = kCheckpointVersion;
  uint32_t real_bytes = sizeof(float);
  int64_t elements = 0;
  int64_t step = 0;
  char zeros[32] = {};
};
static_assert(sizeof(StateHeader) == 64);

absl::Status Invalid(const std::string& directory, const std::string& what) {
  return Error(Reason::kCheckpointInvalid, absl::StrCat("checkpoint ", directory, ": ", what));
}

absl::Status RefuseNonFinite(const CheckpointArrays::Part& part) {
  if (!part.floats) return absl::OkStatus();
  const auto* values = static_cast<const float*>(part.data);
  for (int64_t i = 0; i < part.bytes / static_cast<int64_t>(sizeof(float)); ++i) {
    if (!std::isfinite(values[i])) {
      return Error(Reason::kLossNotFinite,
                   absl::StrCat("no checkpoint is written: element ", i, " of the ", part.what,
                                " is not finite; a lower learning rate may help"));
    }
  }
  return absl::OkStatus();
}

absl::Status WriteInto(const std::string& directory, const CheckpointHead& head,
                       const CheckpointArrays& arrays, const std::vector<MetricRow>& history,
                       SavedCheckpoint& saved) {
  HashedFile state(JoinPath(directory, kStateFile));
  RETURN_IF_ERROR(state.Open());
  StateHeader header;
  header.elements = arrays.elements;
  header.step = head.step;
  RETURN_IF_ERROR(state.Write(&header, sizeof header));
  for (const CheckpointArrays::Part& part : arrays.parts) {
    RETURN_IF_ERROR(state.Write(part.data, part.bytes));
  }
  RETURN_IF_ERROR(state.Finish());

  HashedFile rows(JoinPath(directory, kHistoryFile));
  RETURN_IF_ERROR(rows.Open());
  std::string text;  // in pieces: a long job has a hundred thousand rows
  for (const MetricRow& row : history) {
    absl::StrAppend(&text, RowToJson(row), "\n");
    if (text.size() < kHistoryPiece) continue;
    RETURN_IF_ERROR(rows.Write(text.data(), static_cast<int64_t>(text.size())));
    text.clear();
  }
  RETURN_IF_ERROR(rows.Write(text.data(), static_cast<int64_t>(text.size())));
  RETURN_IF_ERROR(rows.Finish());

  HashedFile manifest(JoinPath(directory, kManifestFile));
  RETURN_IF_ERROR(manifest.Open());
  const std::string manifest_text = ManifestText(
      {head, {{kStateFile, state.bytes(), state.digest()}, {kHistoryFile, rows.bytes(), rows.digest()}}});
  RETURN_IF_ERROR(manifest.Write(manifest_text.data(), static_cast<int64_t>(manifest_text.size())));
  RETURN_IF_ERROR(manifest.Finish());
  saved.bytes = state.bytes() + rows.bytes() + manifest.bytes();
  saved.manifest_sha256 = manifest.digest();
  return SyncDir(directory);
}

// The step of "step-<n>"; -1 for other names.
int64_t StepOfName(const std::string& name) {
  int64_t step = -1;
  if (!name.starts_with("step-") || !absl::SimpleAtoi(name.substr(5), &step)) return -1;
  return step;
}

std::vector<std::string> CompleteCheckpoints(const std::string& checkpoints) {
  std::vector<std::string> names;
  const auto listed = ListDir(checkpoints);
  if (!listed.ok()) return names;
  for (const std::string& name : *listed) {
    if (StepOfName(name) >= 0) names.push_back(name);
  }
  std::sort(names.begin(), names.end(), [](const std::string& a, const std::string& b) {
    return StepOfName(a) < StepOfName(b);
  });
  return names;
}

// All of it at once, by its name: somebody may be about to read it.
absl::Status RemoveCheckpoint(const std::string& directory) {
  if (!FileExists(directory)) return absl::OkStatus();
  const std::string gone = directory + ".gone.tmp";
  RETURN_IF_ERROR(RemoveAll(gone));
  RETURN_IF_ERROR(Rename(directory, gone));
  return RemoveAll(gone);
}

absl::Status VerifyFile(const std::string& directory, const CheckpointManifest::File& file) {
  const std::string path = JoinPath(directory, file.name);
  const auto actual = FileSizeBytes(path);
  if (!actual.ok() || *actual != file.bytes) {
    return Invalid(directory, absl::StrCat(file.name, " is missing or does not have ", file.bytes, " bytes"));
  }
  ASSIGN_OR_RETURN(const std::string digest, Sha256HexOfFile(path));
  if (digest != file.sha256) return Invalid(directory, absl::StrCat(file.name, " does not have its digest"));
  return absl::OkStatus();
}

absl::StatusOr<CheckpointHead> ReadHead(const std::string& directory) {
  const auto text = ReadFile(JoinPath(directory, kManifestFile), 1 << 20);
  if (!text.ok()) return Invalid(directory, "has no readable manifest.json");
  CheckpointManifest manifest;
  const std::string wrong = ManifestFromText(*text, manifest);
  if (!wrong.empty()) return Invalid(directory, absl::StrCat("manifest.json ", wrong));
  for (const CheckpointManifest::File& file : manifest.files) RETURN_IF_ERROR(VerifyFile(directory, file));
  return std::move(manifest.head);
}

// Straight into the arrays: a mapping would be memory beside the plan.
absl::Status ReadAll(int fd, const std::string& path, void* data, int64_t size) {
  auto* at = static_cast<char*>(data);
  while (size > 0) {
    const ssize_t got = read(fd, at, static_cast<size_t>(size));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ErrnoStatus(errno, "read " + path);
    if (got == 0) return Error(Reason::kCheckpointInvalid, path + " ends early");
    at += got;
    size -= got;
  }
  return absl::OkStatus();
}

absl::Status ReadState(const std::string& directory, int64_t step, const CheckpointArrays& arrays) {
  const std::string path = JoinPath(directory, kStateFile);
  const auto size = FileSizeBytes(path);
  int64_t bytes = 0;
  for (const CheckpointArrays::Part& part : arrays.parts) bytes += part.bytes;
  StateHeader header;
  const StateHeader expected;
  const int64_t header_bytes = sizeof header;
  if (!size.ok() || *size < header_bytes) return Invalid(directory, "state.bin is too short");
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return ErrnoStatus(errno, "open " + path);
  const absl::Cleanup close_file = [fd] { close(fd); };
  RETURN_IF_ERROR(ReadAll(fd, path, &header, header_bytes));
  if (std::memcmp(header.magic, expected.magic, sizeof header.magic) != 0 ||
      header.version != expected.version || header.real_bytes != expected.real_bytes) {
    return Invalid(directory, "state.bin has another format");
  }
  if (header.elements != arrays.elements || header.step != step || *size != header_bytes + bytes) {
    return Invalid(directory,
                   absl::StrCat("state.bin holds ", header.elements, " elements at step ",
                                header.step, ", not ", arrays.elements, " at ", step));
  }
  for (const CheckpointArrays::Part& part : arrays.parts) {
    RETURN_IF_ERROR(ReadAll(fd, path, part.data, part.bytes));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<SavedCheckpoint> SaveCheckpoint(const std::string& checkpoints,
                                               const CheckpointHead& head,
                                               const CheckpointArrays& arrays,
                                               const std::vector<MetricRow>& history) {
  for (const CheckpointArrays::Part& part : arrays.parts) RETURN_IF_ERROR(RefuseNonFinite(part));
  const std::string name = absl::StrCat("step-", head.step);
  const std::string temporary = JoinPath(checkpoints, name + ".tmp");
  SavedCheckpoint saved;
  saved.directory = JoinPath(checkpoints, name);
  RETURN_IF_ERROR(RemoveAll(temporary));
  RETURN_IF_ERROR(MakeDirs(temporary));
  const absl::Status written = WriteInto(temporary, head, arrays, history, saved);
  if (!written.ok()) {
    RemoveAll(temporary).IgnoreError();
    return written;
  }
  RETURN_IF_ERROR(RemoveCheckpoint(saved.directory));
  RETURN_IF_ERROR(Rename(temporary, saved.directory));
  return saved;
}

absl::Status PruneCheckpoints(const std::string& checkpoints, int keep) {
  std::vector<std::string> names = CompleteCheckpoints(checkpoints);
  absl::Status status;
  for (size_t i = 0; i + static_cast<size_t>(keep) < names.size(); ++i) {
    status.Update(RemoveCheckpoint(JoinPath(checkpoints, names[i])));
  }
  ASSIGN_OR_RETURN(const std::vector<std::string> left, ListDir(checkpoints));
  for (const std::string& name : left) {
    if (name.ends_with(".tmp")) status.Update(RemoveAll(JoinPath(checkpoints, name)));
  }
  return status;
}

absl::StatusOr<LoadedCheckpoint> LoadCheckpoint(const std::string& directory,
                                                const CheckpointArrays& arrays) {
  LoadedCheckpoint loaded;
  ASSIGN_OR_RETURN(loaded.head, ReadHead(directory));
  RETURN_IF_ERROR(ReadState(directory, loaded.head.step, arrays));
  std::ifstream rows(JoinPath(directory, kHistoryFile));
  for (std::string line; std::getline(rows, line);) {
    MetricRow row;
    if (!RowFromJson(line, row)) return Invalid(directory, "history.jsonl has a line that is no metric row");
    loaded.history.push_back(row);
  }
  if (!rows.eof()) return Invalid(directory, "history.jsonl cannot be read");
  return loaded;
}

std::string NewestCheckpoint(const std::string& checkpoints) {
  const std::vector<std::string> names = CompleteCheckpoints(checkpoints);
  return names.empty() ? "" : JoinPath(checkpoints, names.back());
}

}  // namespace nibble::engine
